"""What becomes of a run whose cluster has lost its head: what there is is saved, and it ends, before Ray ends it.

Ranks still train and are heard then, but no process can be started or ended. When the head counts as lost is decided in
`contact.py`; how the ranks stop and save is as after Ctrl-C.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from orchestrator.errors import HeadLostError, RunInterrupted
from orchestrator.exchange import HeadLost
from orchestrator.journal import Journal
from orchestrator.loop import Loop
from orchestrator.notice import notice

__all__ = ["Headless"]


class Headless:
    """Ends a run without a head.

    Args:
        loop: what comes, and what time it is.
        journal: the record.
        stop: has all ranks stop at a common iteration and save there; raises `RunInterrupted` if they do not train yet.
    """

    def __init__(self, loop: Loop, journal: Journal, stop: Callable[[], None]) -> None:
        self._loop = loop
        self._journal = journal
        self._stop = stop
        self._error: HeadLostError | None = None
        self._until = 0.0
        loop.handle({HeadLost: self._on_lost})
        loop.on_tick.append(self._tick)

    def check(self) -> None:
        """The ranks have stopped; if they had to, say why.

        Raises:
            HeadLostError: they had to.
        """
        if self._error is not None:
            raise self._loop.end(self._error)

    def _on_lost(self, lost: HeadLost) -> None:
        self._error = HeadLostError.at(lost.address, seconds=lost.silence)
        self._until = time.monotonic() + lost.left
        self._journal.write(
            "HEAD_LOST", address=lost.address, seconds=round(lost.silence, 1)
        )  # Ray may end us any time
        notice(
            f"the cluster's head at {lost.address} has been silent for {lost.silence:.0f} s: the run is saved, if that "
            f"can be done in {lost.left:.0f} s, and ends"
        )
        try:
            self._stop()
        except RunInterrupted:
            self.check()

    def _tick(self) -> None:
        if self._error is not None and time.monotonic() > self._until:
            self.check()
