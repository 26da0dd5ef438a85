"""What the user is told while a run goes on: lines on standard error, all of one form.

Results go to standard output, errors are raised; this is for what is neither. Called by whoever waits, stops or falls
back.
"""

from __future__ import annotations

import sys

__all__ = ["notice"]


def notice(text: str) -> None:
    """Print one line, `rankfire: TEXT`, on standard error.

    Args:
        text: what happens, and what the user may do about it.
    """
    print(f"rankfire: {text}", file=sys.stderr, flush=True)  # noqa: T201
