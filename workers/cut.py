"""A consistent cut: stop all ranks after the same iteration, though they are not in the same one when asked.

The driver proposes; each rank answers from its control thread with the iteration in progress and starts none beyond it;
the target is the maximum over ranks; ranks below it run on, then all arrive. Between proposals this costs nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from workers.engine import Engine

__all__ = ["Cut"]


class Cut:
    """One rank's part in a cut.

    Args:
        arrive: called on the training thread when the target iteration is complete.
        idle: called again and again instead of waiting for the target, where the driver lives in the same thread.
    """

    def __init__(self, arrive: Callable[[Engine, int], None], idle: Callable[[], None] | None = None) -> None:
        self._arrive = arrive
        self._idle = idle
        self._changed = threading.Condition()
        self._answered = 0
        self._target: int | None = None
        self._cancelled = False
        self._before: Callable[[Engine], object] | None = None

    def propose(self, engine: Engine) -> int:
        """Promise not to go beyond the iteration in progress, and tell its number; from any thread."""
        with self._changed:
            self._target, self._cancelled = None, False
            # The barrier is armed before the number is read. The training thread announces an iteration before it
            # looks for the barrier. So an iteration that is not in the answer is one that will find the barrier.
            if engine.boundary != self._at_boundary:
                self._before = engine.boundary  # whoever looks in between iterations goes on doing so afterwards
            engine.set_boundary(self._at_boundary)
            self._answered = engine.announced
            return self._answered

    def arm(self, engine: Engine, target: int) -> None:
        """Arrive when `target` iterations are complete, which were agreed on before; the engine does not run yet."""
        with self._changed:
            if not self._cancelled:
                self._target = target
                self._before = engine.boundary
                engine.set_boundary(self._at_boundary)

    def settle(self, target: int) -> None:
        """The driver's verdict: arrive when `target` iterations are complete; from any thread."""
        with self._changed:
            self._target = target
            self._changed.notify_all()

    def cancel(self) -> None:
        """Nobody waits for this cut any more; from any thread."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    def _at_boundary(self, engine: Engine) -> None:
        with self._changed:
            if engine.announced > self._answered:
                while self._idle is not None and not self._settled():
                    self._idle()
                self._changed.wait_for(self._settled)
            completed = engine.announced - 1
            if not self._cancelled and (self._target is None or completed < self._target):
                return
            if engine.boundary == self._at_boundary:  # else somebody who could not wait has put another there
                engine.set_boundary(self._before)
            if self._cancelled:
                return
        self._arrive(engine, completed)

    def _settled(self) -> bool:
        return self._target is not None or self._cancelled
