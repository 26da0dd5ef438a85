"""How often a snapshot is taken: every so many iterations, or as often as a share of the training time allows.

The number is the same on all ranks, and so are the iterations at which it is measured anew: both depend on counts
alone, and are part of every snapshot. Between those iterations it costs one comparison, which the engine makes anyway.
Made by `rewinding.py`, which hangs `at` on `expression`.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal

from workers.events import EventExpression, Events
from workers.expressions import NEVER, Filtered
from workers.filters import Filter

__all__ = ["Pace"]

EARLY = 6  # iterations between two snapshots before anything was measured
FIRST = 24  # iterations after which it is measured: three snapshots, of which two had to get their memory
GROWTH = 8  # each measurement is so many times farther from the start than the one before
WINDOW = 8  # iterations before a measurement in which steps are timed


class Pace:
    """When snapshots are due.

    Args:
        every: iterations between two snapshots; "auto": measured, as often as the budget allows; None: never.
        budget: share of the training time that snapshots may take, for "auto".
        most: iterations between two snapshots at most, for "auto".
        agree: the largest of all ranks' numbers; a collective, called at the same iterations on all of them.
        settle: waits until the device has done what it was given; called before the clock is read.
        clock: seconds.

    Attributes:
        every: iterations between two snapshots at the moment; None: there are none.

    Example:
        >>> pace = Pace(5)
        >>> [iteration for iteration in range(1, 12) if pace.due(iteration)]
        [5, 10]
    """

    def __init__(
        self,
        every: int | Literal["auto"] | None,
        *,
        budget: float = 0.01,
        most: int = 10_000,
        agree: Callable[[int], int] = lambda number: number,
        settle: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.every: int | None = EARLY if every == "auto" else every
        self._budget = budget
        self._most = most
        self._agree = agree
        self._settle = settle
        self._clock = clock
        self._measures = every == "auto"
        self._start = 0
        self._next = FIRST if self._measures else NEVER  # the iteration at which it is measured next
        self._costs: deque[float] = deque(maxlen=4)  # seconds that the last snapshots took
        self._steps: list[float] = []  # seconds of the steps in the window
        self._marked, self._mark = -1, 0.0  # the iteration that was seen last, and when

    @property
    def expression(self) -> EventExpression:
        """Firings at which `at` has something to do."""
        return Filtered(Events.ITERATION_COMPLETED, _Due(self))

    def begin(self, iteration: int) -> None:
        """A run begins or goes on after so many iterations, without a snapshot of its own."""
        if self._measures:
            self.every, self._start, self._next = EARLY, iteration, iteration + FIRST
        self._forget_steps()

    def due(self, iteration: int) -> bool:
        """Whether a snapshot is taken after that iteration."""
        return self.every is not None and iteration % self.every == 0

    def at(self, iteration: int, take: Callable[[], object]) -> None:
        """An iteration that `expression` names is complete: measure if it is time to, take a snapshot if one is due.

        Args:
            iteration: its number.
            take: takes the snapshot.
        """
        self._settle()
        now = self._clock()
        if iteration == self._marked + 1:
            self._steps.append(now - self._mark)
        if iteration >= self._next:
            self._measure(iteration)  # first: what is found out is part of the snapshot
        if self.due(iteration):
            now = self._clock()
            take()
            self._costs.append(self._clock() - now)
        self._marked, self._mark = iteration, self._clock()

    def next_count(self, iteration: int) -> int:
        """The next iteration at which `at` has something to do, as far as is known now."""
        snapshot = NEVER if self.every is None else (iteration // self.every + 1) * self.every
        return min(snapshot, max(iteration + 1, self._next - WINDOW))

    def state_dict(self) -> dict[str, Any]:
        """What is equal on all ranks."""
        return {"every": self.every, "start": self._start, "next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as it was; steps that were being timed are forgotten."""
        self.every, self._start, self._next = state["every"], state["start"], state["next"]
        self._forget_steps()

    def _measure(self, iteration: int) -> None:
        if len(self._steps) < WINDOW // 2:  # on every rank, since counts decide: the run went on in the window's middle
            self._next = iteration + WINDOW
            return
        wanted = 0  # a newcomer that has taken none yet has no opinion
        if self._costs:
            allowed = self._budget * statistics.median(self._steps)
            wanted = min(max(1, math.ceil(min(self._costs) / allowed)), self._most) if allowed > 0 else self._most
        agreed = self._agree(wanted)
        self.every = agreed or self.every
        self._next = self._start + (iteration - self._start) * GROWTH
        self._forget_steps()

    def _forget_steps(self) -> None:
        self._steps = []
        self._marked = -1


class _Due(Filter):
    """The iterations at which a pace has something to do."""

    __slots__ = ("_pace",)

    counts_only = True

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def passes(self, count: int, engine: object) -> bool:
        """Whether that is one; which one comes next may have changed since it was asked."""
        return self._pace.next_count(count - 1) == count

    def next_count(self, count: int) -> int:
        """The next one as far as is known now, which is always before what will be known."""
        return self._pace.next_count(count)

    def __repr__(self) -> str:
        return f"every={self._pace.every}"
