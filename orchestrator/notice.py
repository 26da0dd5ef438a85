"""What the user is told while a run goes on: lines on standard error, all of one form.

Results go to standard output, errors are raised; this is for what is neither. Called by whoever waits, stops or falls
back.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any, TextIO

__all__ = ["Steady", "notice"]


def notice(text: str) -> None:
    """Print one line, `rankfire: TEXT`, on standard error.

    Args:
        text: what happens, and what the user may do about it.
    """
    print(f"rankfire: {text}", file=Steady(sys.stderr), flush=True)


class Steady:
    """A text stream whose reader may go away: what nobody reads is lost, and no error of the run.

    Args:
        stream: where the text goes; None, as Python has it for a closed descriptor: nowhere.

    Example:
        >>> print("epoch 1", file=Steady(sys.stdout))
        epoch 1
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write what can be written."""
        with contextlib.suppress(OSError, ValueError):  # a ValueError is what a closed stream raises
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with contextlib.suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
