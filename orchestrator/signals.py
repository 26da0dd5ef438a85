"""Ctrl-C and SIGTERM while a run is on: the first asks it to stop well, the second stops it now, more are ignored.

Used by `training.py` around a run. Where ranks started by Ray would take a signal for themselves: `placement.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from orchestrator.exchange import Group
from workers.errors import LeaveNow

__all__ = ["Signals", "StopNow"]

STDERR = 2


class StopNow(KeyboardInterrupt, LeaveNow):
    """The user has asked twice. With `workers: 0` it unwinds the session too, which must not take it for a fault."""


class Signals:
    """A context in which signals are the run's; in another thread than the main one, nothing changes.

    Args:
        group: gets an `Interrupt` at the first signal.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._told = 0
        self._stopping = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stopping(self) -> None:
        """The workers are being ended, which takes a bounded time: from here on no signal may disturb that."""
        self._stopping = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._told += 1
        if self._stopping or self._told > 2:
            return
        if self._told == 2:
            raise StopNow
        self._group.interrupt()  # first: whether the user can be told or not
        again = "press Ctrl-C again" if number == signal.SIGINT else "send SIGTERM again"
        with contextlib.suppress(OSError):  # nobody may be there to read it
            text = f"\nrankfire: stopping at the next iteration; {again} to stop now\n"
            os.write(STDERR, text.encode())  # a signal may come in the middle of a print()
