"""What the commands that look at runs share: the option --storage, and sizes in words.

Called by `checkpoints.py` and `export.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

__all__ = ["size_in_words", "storage_option"]

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


def size_in_words(size: float) -> str:
    """Say how much a number of bytes is: `817 B`, `4.2 MiB`."""
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"
