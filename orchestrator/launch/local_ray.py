"""Around the start of a Ray of our own: which signals are whose, and in which process groups its processes are.

Called by `placement.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["out_of_our_group", "signals_kept"]


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself and ends the process at once; the run ends it well, also while Ray starts."""
    import ray._private.utils as theirs

    mine = signal.getsignal(signal.SIGTERM)
    take: Any = getattr(theirs, "set_sigterm_handler", None)
    if take is not None:
        theirs.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        if take is not None:
            theirs.set_sigterm_handler = take
        if threading.current_thread() is threading.main_thread() and mine is not None:
            signal.signal(signal.SIGTERM, mine)  # for a Ray that goes another way


@contextlib.contextmanager
def out_of_our_group() -> Iterator[None]:
    """What Ray starts here gets process groups of its own, and dies with this process all the same.

    Else a SIGTERM to our group, as of timeout(1) or a shell, would end the cluster before the run has ended.
    """
    import ray._private.utils as theirs

    tie: Any = getattr(theirs, "set_kill_on_parent_death_linux", None)  # called in each child, before its program

    def tie_and_part() -> None:
        tie()
        os.setpgid(0, 0)

    if tie is not None:
        theirs.set_kill_on_parent_death_linux = tie_and_part
    try:
        yield
    finally:
        if tie is not None:
            theirs.set_kill_on_parent_death_linux = tie
