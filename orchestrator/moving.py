"""What is done about where the ranks are while all stand at a cut: the world grows, ranks leave nodes that go away.

Regrouping without a fault. When is decided here, how in `regrouping.py`; from where workers come in `reserves.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from orchestrator.gatekeeper import Gatekeeper
from orchestrator.loop import Loop
from orchestrator.ranks import Ranks
from orchestrator.regrouping import Regrouping
from orchestrator.reserves import Reserves

__all__ = ["Moving"]

LAST = 0.5  # of the time that a node has left: if by then there is nowhere else to go, the run ends, saved


class Moving:
    """Moves the ranks of a run.

    Args:
        loop: what comes, and what time it is.
        ranks: who is who.
        reserves: workers that wait.
        regrouping: deals the ranks anew.
        gates: where the ranks are.
        cut: has all ranks stand after one common iteration.

    Attributes:
        save: makes a checkpoint, while all ranks wait.
        give_up: ends the run, since all that it stands on goes away.
    """

    def __init__(
        self,
        loop: Loop,
        ranks: Ranks,
        reserves: Reserves,
        regrouping: Regrouping,
        gates: Gatekeeper,
        cut: Callable[[], None],
    ) -> None:
        self.save: Callable[[], None] = lambda: None
        self.give_up: Callable[[], None] = lambda: None
        self._loop = loop
        self._ranks = ranks
        self._reserves = reserves
        self._regrouping = regrouping
        self._gates = gates
        self._cut = cut
        self._growing = False
        self._save_due = False
        self._until: float | None = None  # when nodes are gone on which ranks still are
        reserves.grow = self.grow
        loop.on_tick.append(self._tick)

    def grow(self) -> None:
        """There are workers that no rank has: use them at the next cut."""
        self._growing = True
        self._cut()

    def leave(self, seconds: float) -> None:
        """Nodes on which ranks are will be gone in so many seconds: save now, and move as soon as there is room."""
        now = time.monotonic()
        until = now + LAST * seconds
        self._until = until if self._until is None else min(self._until, until)
        self._save_due = True
        self._reserves.want(len(self._leaving()))
        self._cut()

    def at_cut(self) -> None:
        """All ranks stand after one common iteration."""
        if self._save_due:
            self._save_due = False
            self.save()
        leaving = self._leaving()
        if leaving and self._reserves.ready >= len(leaving):
            facts = self._loop.facts
            facts.lost.update(dict.fromkeys(leaving, "its node is about to be taken away"))
            self._until = None
            self._regroup(fault=True)
        elif self._growing and self._reserves.usable:
            self._regroup(fault=False)
        self._growing = False

    def _regroup(self, *, fault: bool) -> None:
        self._regrouping.mend(fault=fault)
        self._gates.wait_present()

    def _leaving(self) -> list[int]:
        """Members on nodes that go."""
        return [worker for worker in self._ranks.members if worker in self._loop.facts.draining]

    def _tick(self) -> None:
        if self._until is None:
            return
        leaving = self._leaving()
        if not leaving:
            self._until = None
        elif time.monotonic() > self._until:
            self._until = None
            if len(leaving) == self._ranks.world_size:
                self.give_up()
