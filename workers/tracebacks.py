"""A user's exception in words: its traceback from the user's first line on, and the line of theirs that raised it.

What stands above the user's first frame is how Rankfire came to call them: no help to who looks for a bug. Used where
exceptions become text, on ranks and on the driver.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from pathlib import Path

__all__ = ["is_ours", "only_ours", "place_of", "text_of"]

_HOME = Path(__file__).resolve().parent.parent
_OURS = tuple(f"{_HOME / package}{os.sep}" for package in ("orchestrator", "workers"))
_INSTALLED = tuple(
    {f"{os.path.realpath(sysconfig.get_path(name))}{os.sep}" for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    | {f"{prefix}{os.sep}lib{os.sep}" for prefix in (sys.prefix, sys.base_prefix)}
)


def is_ours(filename: str) -> bool:
    """Whether a frame's file belongs to Rankfire."""
    return filename.startswith(_OURS)


def text_of(error: BaseException) -> str:
    """An exception and its causes, as Python prints them; each traceback begins at the user's first frame, if any.

    Args:
        error: what was caught.
    """
    whole = traceback.TracebackException.from_exception(error)
    waiting: list[traceback.TracebackException | None] = [whole]
    while waiting:
        told = waiting.pop()
        if told is not None:
            _fold(told.stack)
            waiting += [told.__cause__, told.__context__]
    return "".join(whole.format())


def place_of(error: BaseException) -> str | None:
    """The innermost line of the user's own code that an exception went through, as `file.py:28`; None if none did."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not (is_ours(frame.filename) or frame.filename.startswith((*_INSTALLED, "<"))):
            return f"{os.path.basename(frame.filename)}:{frame.lineno}"
    return None


def only_ours(error: BaseException) -> bool:
    """Whether neither an exception nor its causes went through a line that is not of Rankfire."""
    known: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        told = waiting.pop()
        if told is None or any(told is one for one in known):
            continue
        if any(not is_ours(frame.filename) for frame in traceback.extract_tb(told.__traceback__)):
            return False
        known.append(told)
        waiting += [told.__cause__, None if told.__suppress_context__ else told.__context__]
    return True


def _fold(stack: traceback.StackSummary) -> None:
    first = next((index for index, frame in enumerate(stack) if not is_ours(frame.filename)), 0)
    del stack[:first]
