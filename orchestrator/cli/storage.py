"""What the commands that look at runs share: their options, JSON, and sizes and times in words.

Called by every command that names a run.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from orchestrator.runs import RunState
    from workers.storage import Storage

__all__ = ["folder_named", "json_option", "print_json", "shown", "size_in_words", "storage_option", "time_in_words"]

Command = TypeVar("Command", bound=Callable[..., None])


def storage_option(command: Command) -> Command:
    """Give a command the option --storage."""
    return click.option(
        "--storage",
        default="runs",
        show_default=True,
        metavar="FOLDER",
        help="Path or URL of the folder in which runs have theirs.",
    )(command)


def json_option(command: Command) -> Command:
    """Give a command the option --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")(command)


def print_json(content: object) -> None:
    """Print one JSON document, without secrets."""
    from workers.redaction import redact

    click.echo(redact(json.dumps(finite(content), indent=2, default=str, allow_nan=False)))


def finite(content: object) -> object:
    """JSON knows no NaN and no infinity: they become their names, as in the journal."""
    if isinstance(content, float) and not math.isfinite(content):
        return str(content)
    if isinstance(content, Mapping):
        return {key: finite(item) for key, item in content.items()}
    return [finite(item) for item in content] if isinstance(content, list | tuple) else content


def folder_named(run: str, storage: str) -> Storage:
    """The folder of a run that the command line names.

    Raises:
        SpecError: there is none of that name.
    """
    from orchestrator.checkpoints.references import folder_of, storage_named

    return folder_of(run, storage_named(storage))


def shown(state: RunState) -> dict[str, object]:
    """How a run stands, as JSON."""
    from dataclasses import asdict

    return asdict(state)


def time_in_words(seconds: float | None) -> str:
    """A moment, in seconds since 1970, in local time."""
    if seconds is None:
        return ""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):  # no clock ever showed it
        return "?"


def size_in_words(size: float) -> str:
    """Say how much a number of bytes is: `817 B`, `4.2 MiB`."""
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"
