"""Collect garbage at the same iterations on all ranks: else each waits for the others whenever one happens to."""

from __future__ import annotations

import gc

from workers.engine import Engine
from workers.events import Events
from workers.handlers.ranks import Ranks, interval

__all__ = ["GarbageCollection"]


class GarbageCollection:
    """Switch Python's automatic garbage collection off while training, and collect every so many iterations.

    Args:
        every: iterations between two collections.
        full_every: collections of which one goes through all generations, not the young ones alone.

    Raises:
        ValueError: a number can't be used.

    Example:
        >>> orchestrator.attach(GarbageCollection(every=500))  # doctest: +SKIP
    """

    def __init__(self, every: int = 1000, *, full_every: int = 10) -> None:
        self.every = interval("GarbageCollection", every)
        self.full_every = interval("GarbageCollection", full_every, "full_every")
        self._was_on = True
        self._froze = False

    def attach(self, target: Engine | Ranks) -> None:
        """Take over from the start of a run to its end; at the orchestrator: on every rank."""
        if not isinstance(target, Engine):
            target.send(self)
            return
        target.add_event_handler(Events.STARTED | Events.RESUMED, self._take_over)
        target.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), self)
        ends = Events.COMPLETED | Events.INTERRUPT | Events.EXCEPTION_RAISED
        target.add_event_handler(ends, self._give_back)

    def __call__(self, engine: Engine) -> None:
        """Collect now."""
        number = engine.state.iteration // self.every
        gc.collect(2 if number % self.full_every == 0 else 1)

    def _take_over(self) -> None:
        self._was_on, self._froze = gc.isenabled(), not gc.get_freeze_count()
        if self._froze:
            gc.freeze()  # what is here now stays: a full collection then looks at what training made only
        gc.disable()

    def _give_back(self) -> None:
        if self._froze:
            gc.unfreeze()
        if self._was_on:
            gc.enable()
