"""The job's description as frozen values: what a YAML job file says, checked.

What a single value may be is said here; lines of files, the wording of problems and `--set` live in
`specfile.py` and `spec_problems.py`. The driver is built from a `JobSpec`; editors read its JSON schema.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, NoReturn

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

__all__ = [
    "BestSpec",
    "CheckpointSpec",
    "ClusterSpec",
    "EvaluateSpec",
    "EverySpec",
    "JobSpec",
    "StartFromSpec",
    "TrainSpec",
    "WorkersSpec",
]

FINEST = 1e-4  # of a resource: Ray counts in ten thousandths
MOST_WORKERS = 100_000  # more is a slip: nobody waits for so many processes
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


Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(check_fineness)]
Workers = Annotated[int, Field(ge=0, le=MOST_WORKERS)]
RunId = Annotated[str, AfterValidator(check_run_id), Field(json_schema_extra={"pattern": f"^{RUN_ID.pattern}$"})]
Target = Annotated[str, AfterValidator(check_target_form), Field(json_schema_extra={"pattern": "^[^\\s:]+:[^\\s:]+$"})]


class Section(BaseModel):
    """What every part of a spec has in common: frozen, no unknown keys, no conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class TrainSpec(Section):
    """How long to train: `max_epochs` or `max_iters`, one of the two."""

    max_epochs: Count | None = None
    """Epochs to train; give this or max_iters."""
    max_iters: Count | None = None
    """Iterations to train, over all epochs; give this or max_epochs."""
    epoch_length: Count | None = None
    """Iterations of one epoch; null: one pass over the data."""

    @model_validator(mode="after")
    def check_one_limit(self) -> TrainSpec:
        """Accept exactly one of the two limits."""
        if (self.max_epochs is None) == (self.max_iters is None):
            refuse("exactly one of max_epochs and max_iters", "write for example max_epochs: 5")
        return self


class WorkersSpec(Section):
    """The ranks: how many, and what each one needs. A whole number alone is short for `count`."""

    count: Workers
    """Number of ranks (the world size); 0 runs the program in the calling process, for a debugger."""
    spares: Workers = 0
    """Further workers that are built and wait to take a lost rank's place."""
    cpus: Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(check_fineness)] = 1.0
    """CPUs reserved for each worker."""
    gpus: Annotated[Amount, AfterValidator(check_gpus)] = 0.0
    """GPUs reserved for each worker: a share below 1, or a whole number."""
    resources: Annotated[dict[str, Amount], AfterValidator(check_resources)] = Field(default_factory=dict)
    """Custom Ray resources reserved for each worker, by name."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How the workers are laid over the nodes: Ray's placement group strategy."""

    @model_validator(mode="before")
    @classmethod
    def expand_count(cls, given: object) -> object:
        """Read a whole number alone as the count."""
        return {"count": given} if isinstance(given, int) and not isinstance(given, bool) else given

    @model_validator(mode="after")
    def check_spares(self) -> WorkersSpec:
        """Accept spares only where there are worker processes."""
        if self.spares and not self.count:
            refuse("no spares where count is 0 (the calling process can't be replaced)", "write spares: 0")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Show editors the short form too."""
        section = handler.resolve_ref_schema(handler(core_schema))
        number = {"type": "integer", "minimum": 0, "description": "Number of ranks."}
        return {"anyOf": [number, section], "description": section.get("description", "")}


class EvaluateSpec(Section):
    """A shared evaluation on the epoch boundary; its metrics appear as `validation/NAME`."""

    engine: Text = "evaluator"
    """Name of the program's engine that evaluates."""
    every: Count = 1
    """Evaluate after each so many epochs."""


class BestSpec(Section):
    """Which checkpoint is the best one; it is never pruned."""

    metric: Text
    """Name of the reduced metric to compare, such as validation/accuracy."""
    mode: Literal["max", "min"] = "max"
    """Whether a greater (max) or a smaller (min) value is better."""


class EverySpec(Section):
    """How often to save: after so many epochs, iterations or seconds, one of the three."""

    epochs: Count | None = None
    """Save at the end of each so many epochs. A whole number alone is short for this."""
    iterations: Count | None = None
    """Save after each so many iterations, in the middle of epochs too."""
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Save when so many seconds have gone since the last save, at the next iteration that all ranks reach."""

    @model_validator(mode="before")
    @classmethod
    def expand_epochs(cls, given: object) -> object:
        """Read a whole number alone as epochs."""
        return {"epochs": given} if isinstance(given, int) and not isinstance(given, bool) else given

    @model_validator(mode="after")
    def check_one(self) -> EverySpec:
        """Accept exactly one of the three."""
        if sum(value is not None for value in (self.epochs, self.iterations, self.seconds)) != 1:
            refuse("exactly one of epochs, iterations and seconds", "write for example every: {iterations: 500}")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Show editors the short form too."""
        section = handler.resolve_ref_schema(handler(core_schema))
        number = {"type": "integer", "minimum": 1, "description": "Number of epochs."}
        return {"anyOf": [number, section], "description": section.get("description", "")}


class CheckpointSpec(Section):
    """When to save a checkpoint, and how many are kept."""

    every: EverySpec = EverySpec(epochs=1)
    """Save after each so many epochs; or a mapping with epochs, iterations or seconds."""
    keep: Count = 3
    """Newest checkpoints to keep, beside the best one."""
    best: BestSpec | None = None
    """Keep the best checkpoint by this metric; null: only the newest are kept."""
    on_save_error: Literal["stop", "continue"] = "stop"
    """What a save that failed means for the run: it stops, or it goes on and tries again when the next one is due."""


class StartFromSpec(Section):
    """What a new run takes from a checkpoint of another one; one that has checkpoints of its own goes on from those."""

    checkpoint: Text
    """RUN@best, RUN@latest, RUN@STEP, or the path or URL of a checkpoint."""
    state: Annotated[list[Text], Field(min_length=1)] = ["model"]
    """Names of the entries of its state that are loaded; the rest of the program starts afresh."""

    @model_validator(mode="before")
    @classmethod
    def expand_checkpoint(cls, given: object) -> object:
        """Read a text alone as the checkpoint."""
        return {"checkpoint": given} if isinstance(given, str) else given


class ClusterSpec(Section):
    """Where the run's workers live."""

    address: Text | None = None
    """Address of a running Ray cluster; null: RAY_ADDRESS if it is set, else Ray is started on this machine."""
    autoscale: bool = False
    """Whether the cluster grows on demand, so that a run may wait for nodes that are not there yet."""
    start_timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0
    """Seconds within which all workers must be up, and then joined; building and loading may take longer."""


class JobSpec(Section):
    """One training job: everything that `rankfire run job.yaml` needs to know."""

    run: RunId
    """Run id, the name of the run's folder in storage; the same id continues the same run."""
    program: Target
    """module:function of build(worker) -> Program, which runs on every rank."""
    handlers: Target | None = None
    """module:function of attach(orchestrator), which runs on the driver and registers handlers."""
    config: dict[str, JsonValue] = Field(default_factory=dict)
    """The program's own settings, handed to it as worker.config: plain YAML values."""
    train: TrainSpec
    """How long to train."""
    workers: WorkersSpec
    """The ranks: a whole number, or a mapping with count and what each rank needs."""
    evaluate: EvaluateSpec | None = None
    """Evaluate on epoch boundaries; null: never."""
    checkpoint: CheckpointSpec | None = None
    """Save checkpoints; null: never."""
    start_from: StartFromSpec | None = None
    """Start a new run with a part of another run's state, as for fine-tuning; null: start afresh."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the data order and of all random numbers."""
    storage: Annotated[Text, AfterValidator(check_storage)] = "runs"
    """Folder (or URL) under which each run has its folder."""
    cluster: ClusterSpec = ClusterSpec()
    """Where the workers live."""

    @field_validator("storage")
    @classmethod
    def check_reach(cls, storage: str, given: ValidationInfo) -> str:
        """Accept the memory of this process only where it is the only one."""
        workers = given.data.get("workers")
        if storage.startswith("memory://") and workers is not None and workers.count:
            refuse("a folder or URL that every worker reaches", "write for example runs, or workers: 0")
        return storage
