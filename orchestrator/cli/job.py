"""What the commands that read a job file share: the option --set, and where its functions are searched.

Called by `run.py` and `validate.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import click

__all__ = ["roots_of", "set_option"]

Command = TypeVar("Command", bound=Callable[..., None])


def set_option(command: Command) -> Command:
    """Give a command the option --set."""
    return click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key of the job file, as in train.max_epochs=3; may be given many times.",
    )(command)


def roots_of(job: str) -> list[str]:
    """Give the folders in which a job's functions are searched: the current one and the job file's."""
    return list(dict.fromkeys([os.getcwd(), os.path.dirname(os.path.abspath(job))]))
