"""Wording of what is wrong with a job's values: pydantic's errors in the four parts of every user error.

Knows paths (`train.max_epochs`) and values, but no files and lines: `specfile.py` puts those in front.
Python callers, who have no file, use `make_spec`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.errors import SpecError, explain
from orchestrator.spec import JobSpec

__all__ = ["dotted", "make_spec", "problems_of", "show"]

EXPECTED = {
    "int_type": ("a whole number", "write a whole number such as 2"),
    "float_type": ("a number", "write a number such as 0.5"),
    "finite_number": ("a finite number", "write a number such as 0.5"),
    "string_type": ("text", "put it in quotes if it looks like a number"),
    "string_too_short": ("text that is not empty", "write it, or leave the key out"),
    "bool_type": ("true or false", "write one of these words, without quotes"),
    "dict_type": ("a mapping", "write key: value pairs"),
    "model_type": ("a mapping", "write key: value pairs"),
    "invalid-json-value": (
        "plain values: text, numbers, true, false, null, lists, mappings",
        "pass other things as text, and make them in build(worker)",
    ),
}
SHORT: dict[tuple[int | str, ...], tuple[str, str]] = {  # sections that may be a single value instead
    ("workers",): ("a whole number, or a mapping with count", "write a whole number such as 2"),
    ("checkpoint", "every"): (
        "a whole number, or a mapping with one of epochs, iterations and seconds",
        "write a whole number such as 2",
    ),
    ("recovery", "snapshots"): ("auto, off, or a mapping with iterations", "write for example {iterations: 50}"),
}
BOUNDS = {
    "greater_than_equal": ("of at least", "ge", "write {} or more"),
    "greater_than": ("greater than", "gt", "write more than {}"),
    "less_than_equal": ("of at most", "le", "write {} or less"),
    "less_than": ("less than", "lt", "write less than {}"),
}


def make_spec(data: Mapping[str, object]) -> JobSpec:
    """Make the spec from plain values.

    Args:
        data: what a YAML job file would hold, as a mapping.

    Raises:
        SpecError: one line per problem, such as `train.max_epoch: unknown key, did you mean max_epochs?`.

    Example:
        >>> spec = make_spec({"run": "a", "program": "m:build", "train": {"max_epochs": 1}, "workers": 2})
        >>> spec.workers.count
        2
    """
    try:
        return JobSpec.model_validate(dict(data))
    except ValidationError as error:
        found = problems_of(error, data)
        raise SpecError(*(f"{dotted(path)}: {text}" for path, text in found)) from None


def problems_of(error: ValidationError, data: Mapping[str, object]) -> list[tuple[tuple[str | int, ...], str]]:
    """Give path and text of everything that pydantic found in the data; no path is given twice."""
    found: dict[tuple[str | int, ...], str] = {}
    for detail in error.errors():
        found.setdefault(path_of(detail["loc"], data), word(detail))
    return list(found.items())


def path_of(place: tuple[str | int, ...], data: Mapping[str, object]) -> tuple[str | int, ...]:
    """Give the path as the user wrote it, without pydantic's marks and the key that a short form stands for."""
    if place[:1] == ("config",):
        return tuple(part for part in place if part not in ("list", "dict", "[key]"))
    section: object = data
    for part in place[:-1]:
        section = section.get(part) if isinstance(section, Mapping) else None
    return place if isinstance(section, Mapping) or place[:-1] not in SHORT else place[:-1]


def word(detail: ErrorDetails) -> str:
    """Word one error, without its path."""
    kind, received, context = detail["type"], show(detail["input"]), detail.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown_key(detail["loc"])
    if kind == "missing":
        return missing_key(detail["loc"])
    if kind == "refused":
        return explain("", expected=context["expected"], received=received, mend=context["mend"])
    if kind == "literal_error":
        mend = did_you_mean(str(detail["input"]), context["expected"])
        return explain("", expected=context["expected"].replace("'", ""), received=received, mend=mend)
    if kind in BOUNDS:
        relation, name, mend = BOUNDS[kind]
        bound = f"{context[name]:.20g}"
        return explain("", expected=f"a number {relation} {bound}", received=received, mend=mend.format(bound))
    expected, mend = EXPECTED.get(kind, (detail["msg"], "rankfire validate --schema prints what may stand there"))
    if kind == "model_type":
        expected, mend = SHORT.get(detail["loc"], (expected, mend))
    return explain("", expected=expected, received=received, mend=mend)


def unknown_key(path: tuple[str | int, ...]) -> str:
    """Word an unknown key, with the key that was probably meant: beside it, or in another section."""
    known = list(keys_at(path[:-1]))
    name = str(path[-1]).lower().replace("-", "_")
    meant = difflib.get_close_matches(name, known, n=1)
    if not meant:
        meant = [place for place in all_keys(JobSpec) if place.rpartition(".")[2] == name]
    if meant:
        return f"unknown key, did you mean {meant[0]}?"
    mend = "leave it out; settings of the program stand under config"
    return explain("", expected=f"one of the keys {', '.join(known)}", received="an unknown key", mend=mend)


def missing_key(path: tuple[str | int, ...]) -> str:
    """Word a missing key, with the sentence that describes it."""
    fields = keys_at(path[:-1])
    return explain("", expected="this key", received="nothing", mend=f"add it: {fields[str(path[-1])]}")


def keys_at(path: tuple[str | int, ...]) -> dict[str, str]:
    """Give the keys of the section at a path, with their descriptions."""
    section: type[BaseModel] | None = JobSpec
    for part in path:
        assert section is not None, f"no section at {dotted(path)}"
        section = section_in(section.model_fields[str(part)].annotation)
    assert section is not None, f"no section at {dotted(path)}"
    return {name: field.description or "" for name, field in section.model_fields.items()}


def all_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Give the dotted path of every key, outer ones first."""
    found = [prefix + name for name in section.model_fields]
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        found += all_keys(inner, f"{prefix}{name}.") if inner else []
    return found


def section_in(annotation: object) -> type[BaseModel] | None:
    """Find the section in `Section` or `Section | None`."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def did_you_mean(given: str, choices: str) -> str:
    """Word the mend for one of several names, which pydantic gives as `'PACK', 'SPREAD' or 'STRICT_PACK'`."""
    names = {name.lower(): name for name in choices.split("'")[1::2]}
    meant = difflib.get_close_matches(given.lower(), names, n=1, cutoff=0.5)
    return f"did you mean {names[meant[0]]}?" if meant else "write one of them"


def show(value: object) -> str:
    """Show a received value and its type, shortened."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, BaseModel | Mapping):
        return "a mapping" if value or isinstance(value, BaseModel) else "an empty mapping"
    if isinstance(value, list):
        return "a list"
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def dotted(path: tuple[str | int, ...]) -> str:
    """Write a path as users do: `checkpoint.best.metric`, `config.layers[2]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")
