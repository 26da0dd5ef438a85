"""What a single value of a job's spec may be, and what its sections have in common: the words of `spec.py`.

Each check accepts a value, or refuses it with what was expected and the mend.
"""

from __future__ import annotations

import re
from typing import Annotated, NoReturn

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue
from pydantic_core import PydanticCustomError

from workers.redaction import sounds_secret
from workers.secrets import is_reference

__all__ = [
    "Config", "Count", "Cpus", "Gpus", "Labels", "Resources", "RunId", "Seconds", "Section", "Storage", "Target",
    "Text", "Tries", "Workers", "refuse",
]  # fmt: skip

FINEST = 1e-4  # of a resource: Ray counts in ten thousandths
MOST_WORKERS = 100_000  # more is a slip: nobody waits for so many processes
LABEL = re.compile(r"([a-z0-9]([-.a-z0-9]*[a-z0-9])?/)?[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?")
_VALUE = r"[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?"
SELECTOR = re.compile(rf"!?({_VALUE}|in\({_VALUE}(,{_VALUE})*\))")
NODE_ID = "ray.io/node-id"  # the label that Ray gives every node
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\s:]+")


def refuse(expected: str, mend: str) -> NoReturn:
    """Refuse a value; `spec_problems` reads both words back from the context of pydantic's error."""
    raise PydanticCustomError("refused", "expected {expected}; {mend}", {"expected": expected, "mend": mend})


def check_run_id(text: str) -> str:
    """Accept a run id that is one plain folder name, so that no run can leave the storage root."""
    if not RUN_ID.fullmatch(text) or ".." in text:
        refuse(
            "at most 64 letters, digits, '.', '_' and '-', starting with a letter or digit, without '..'",
            "write a name such as digits-1",
        )
    return text


def check_target_form(text: str) -> str:
    """Accept the form `module:function`; whether it exists is asked by `target.py`."""
    if not TARGET.fullmatch(text):
        refuse("module:function", "write for example examples.digits.program:build")
    return text


def check_gpus(number: float) -> float:
    """Accept a share of one GPU or a whole number of them, as Ray does."""
    if number > 1 and number != int(number):
        refuse("a share of one GPU below 1, or a whole number of GPUs", "write for example 0.5 or 2")
    return number


def check_resources(resources: dict[str, float]) -> dict[str, float]:
    """Accept resource names of the user's own; CPU and GPU have keys of their own, memory is Ray's business."""
    for name in resources:
        if name.lower() in ("memory", "object_store_memory"):
            refuse(
                "resource names other than those that Ray keeps (CPU, GPU, memory, object_store_memory)",
                f"leave {name} out: nothing is reserved for it",
            )
        if name.upper() in ("CPU", "GPU"):
            refuse("resource names other than CPU and GPU", f"use the key {name.lower()}s beside resources")
    return resources


def check_fineness(amount: float) -> float:
    """Accept an amount that Ray can count."""
    if 0 < amount < FINEST:
        refuse(f"an amount of at least {FINEST:g}, which is as finely as Ray counts", "write for example 0.5")
    return amount


def check_storage(text: str) -> str:
    """Accept what can be a path; a character that can't be printed is a slip of the pen, or of a script."""
    if not text.isprintable():
        refuse("a path or URL of printable characters", "write for example runs")
    return text


def check_config(config: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Accept settings without secrets: a job file is copied into the run's folder, to clusters, into bug reports."""
    look_for_secrets(config)
    return config


def look_for_secrets(value: JsonValue) -> None:
    """Refuse a text under a key whose name says that it is secret; a reference is what is wanted there."""
    if isinstance(value, list):
        for item in value:
            look_for_secrets(item)
    if not isinstance(value, dict) or is_reference(value):
        return
    if set(value) == {"secret"}:
        refuse("a secret by reference, {env: NAME} or {file: PATH}", "write for example secret: {env: WANDB_API_KEY}")
    for key, item in value.items():
        if sounds_secret(key) and isinstance(item, str) and item:
            refuse(f"no secret itself in {key}", f"write {key}: {{secret: {{env: NAME}}}}, or {{file: PATH}}")
        look_for_secrets(item)


Config = Annotated[dict[str, JsonValue], AfterValidator(check_config)]
Count = Annotated[int, Field(ge=1)]
Tries = Annotated[int, Field(ge=0)]


def check_labels(labels: dict[str, str]) -> dict[str, str]:
    """Accept selectors that Ray understands, of labels that it has not set aside for itself."""
    for name, selector in labels.items():
        if not LABEL.fullmatch(name):
            refuse(
                f"the name of a label of Ray's nodes, not {name!r}", 'write for example {accelerator: "in(A100,H100)"}'
            )
        if not SELECTOR.fullmatch(selector):
            refuse(
                f"VALUE, !VALUE, in(A,B) or !in(A,B) for the label {name}, not {selector!r}",
                'write for example {accelerator: "in(A100,H100)"}',
            )
        if name == NODE_ID:
            refuse(f"no {NODE_ID}, by which lost nodes are avoided", "give the nodes a label of your own")
    return labels


Text = Annotated[str, Field(min_length=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(check_fineness)]
Cpus = Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(check_fineness)]
Gpus = Annotated[Amount, AfterValidator(check_gpus)]
Resources = Annotated[dict[str, Amount], AfterValidator(check_resources)]
Labels = Annotated[dict[str, str], AfterValidator(check_labels)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Storage = Annotated[Text, AfterValidator(check_storage)]
Workers = Annotated[int, Field(ge=0, le=MOST_WORKERS)]
RunId = Annotated[str, AfterValidator(check_run_id), Field(json_schema_extra={"pattern": f"^{RUN_ID.pattern}$"})]
Target = Annotated[str, AfterValidator(check_target_form), Field(json_schema_extra={"pattern": "^[^\\s:]+:[^\\s:]+$"})]


class Section(BaseModel):
    """What every part of a spec has in common: frozen, no unknown keys, no conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
