"""Ctrl-C and SIGTERM while a run is on: the first asks it to stop well, the second stops it now, more are ignored.

While the workers' cluster starts, the first stops it now. Used by `training.py` around a run. Where ranks started by
Ray would take a signal for themselves: `placement.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from orchestrator.exchange import Group
from workers.errors import LeaveNow

__all__ = ["Signals", "StopNow"]

STDERR = 2
DEAF = 3.0  # seconds in which a start must hear a signal


class StopNow(KeyboardInterrupt, LeaveNow):
    """The user has asked twice. With `workers: 0` it unwinds the session too, which must not take it for a fault."""


class Signals:
    """A context in which signals are the run's; in another thread than the main one, nothing changes.

    Args:
        group: gets an `Interrupt` at the first signal.
        starting: whether the main thread is inside the start of the cluster, which may not end.
        leave: ends this process; called on another thread if that start does not hear a signal.
    """

    def __init__(
        self, group: Group, *, starting: Callable[[], bool] = lambda: False, leave: Callable[[], None] = lambda: None
    ) -> None:
        self._group = group
        self._starting = starting
        self._leave = leave
        self._told = 0
        self._heard = threading.Event()  # the first was, on the main thread
        self._wakeup: tuple[int, int] | None = None  # where Python tells of signals, and where it told before
        self._stopping = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)
            }
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            self._wakeup = writer, signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(reader,), name="rankfire-signals", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._wakeup is not None:
            writer, before = self._wakeup
            signal.set_wakeup_fd(before)
            os.close(writer)

    def stopping(self) -> None:
        """The workers are being ended, which takes a bounded time: from here on no signal may disturb that."""
        self._stopping = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._told += 1
        self._heard.set()
        if self._stopping or self._told > 2:
            return
        if self._told == 2:
            raise StopNow
        self._group.interrupt()  # first: whether the user can be told or not
        if self._starting():  # what it waits for may be gone
            raise StopNow
        again = "press Ctrl-C again" if number == signal.SIGINT else "send SIGTERM again"
        with contextlib.suppress(OSError):  # nobody may be there to read it
            text = f"\nrankfire: stopping at the next iteration; {again} to stop now\n"
            os.write(STDERR, text.encode())  # a signal may come in the middle of a print()

    def _listen(self, reader: int) -> None:
        """A handler runs when the main thread comes back to Python; here a signal is seen at once."""
        with open(reader, "rb", buffering=0) as pipe:
            while pipe.read(1):
                if self._in_start() and not self._heard.wait(DEAF) and self._in_start():
                    self._leave()

    def _in_start(self) -> bool:
        return self._starting() and not self._stopping
