"""What is lost before the ranks have joined for the first time: a spare is forgotten, somebody stands in for a rank.

Nothing was trained yet, so nobody goes back: whoever takes the rank builds as that rank. Called by `regrouping.py`,
which does all this in training. Who holds which rank is in `ranks.py`.
"""

from __future__ import annotations

import time

from orchestrator.budgets import Progress
from orchestrator.episode import loss_in_words
from orchestrator.errors import CapacityError, name_ranks
from orchestrator.lifecycle import Lifecycle, Phase
from orchestrator.loop import Loop
from orchestrator.notice import notice
from orchestrator.ranks import Ranks
from orchestrator.recovery import Recover, Stop, judge
from orchestrator.regrouping import Regrouping
from orchestrator.reserves import Reserves
from orchestrator.spec import RecoverySpec
from orchestrator.watching import Watching

__all__ = ["Beginning"]


class Beginning:
    """Mends a start.

    Args:
        loop: what comes.
        life: the run's phase.
        ranks: who is who.
        reserves: where others come from.
        regrouping: mends in training.
        spec: what the job says.
        watching: is told who builds.
    """

    def __init__(
        self,
        loop: Loop,
        life: Lifecycle,
        ranks: Ranks,
        reserves: Reserves,
        regrouping: Regrouping,
        spec: RecoverySpec,
        watching: Watching,
    ) -> None:
        self._loop = loop
        self._life = life
        self._ranks = ranks
        self._reserves = reserves
        self._budgets = regrouping.budgets
        self._spec = spec
        self._watching = watching
        self._progress = Progress()
        self._open: list[int] = []  # ranks whose worker is lost, and for which nobody stands in yet
        self._until = 0.0  # when a new worker must have come
        regrouping.early = self._mend
        ranks.fill = self._fill
        loop.on_tick.append(self._tick)

    def _mend(self) -> bool:
        """Go on without the lost; False if that can't be, and the run is to end."""
        facts, ranks = self._loop.facts, self._ranks
        if facts.faults:
            return False
        if self._life.phase is Phase.PLACING:  # nobody has a rank yet: any of them will do
            if self._loop.group.size - len(facts.lost) < ranks.world_size:
                return False
            for worker in list(facts.lost):
                self._reserves.lose(worker, refill=False)
            return True
        for worker in [worker for worker in facts.lost if worker not in ranks.members]:
            self._reserves.lose(worker, refill=False)
        if facts.lost:
            self._judge()
            self._bury()
        self._fill_open()
        self._watching.begin("building the program")
        return True

    def _judge(self) -> None:
        """See that it may be mended once more.

        Raises:
            RankfireError: it may not.
        """
        facts = self._loop.facts
        self._loop.killed.mark()
        decision = judge(
            facts,
            budgets=self._budgets,
            progress=self._progress,
            now=time.monotonic(),
            iteration=None,
            on_loss=self._spec.on_loss,
        )
        if isinstance(decision, Stop):
            raise self._loop.end(decision.error)
        assert isinstance(decision, Recover), "a rank is lost"

    def _bury(self) -> None:
        """End the processes of the lost, and tell who they were and why."""
        facts = self._loop.facts
        for rank, worker in enumerate(self._ranks.members):
            if worker in facts.lost:
                lost = facts.loss_of(worker)
                del facts.lost[worker]
                if not self._open:
                    self._until = time.monotonic() + self._reserves.patience
                self._open.append(rank)
                self._loop.group.kill(worker)
                notice(loss_in_words(lost))
                self._ranks.tell(lost)
                self._ranks.forget(worker)

    def _fill_open(self) -> None:
        """Spares that have built stand in at once, others as soon as they have; where there are too few, more start."""
        ranks = self._ranks
        for spare in [spare for spare in ranks.spares if spare in ranks.programs.built]:
            self._fill(spare)
        if more := max(0, len(self._open) - len(ranks.spares) - len(ranks.coming)):
            notice(f"starting {'a worker' if more == 1 else f'{more} workers'} in place of what was lost")
            self._reserves.want(more + len(ranks.spares) + len(ranks.coming))

    def _fill(self, worker: int) -> bool:
        if not self._open or self._life.phase is not Phase.BUILDING:
            return False
        self._until = time.monotonic() + self._reserves.patience
        self._ranks.stand_in(self._open.pop(0), worker)
        self._watching.begin("building the program")
        return True

    def _tick(self) -> None:
        """End the run if nobody has come in time for a rank that is open."""
        if self._life.phase is not Phase.BUILDING or not self._open:
            return
        if self._reserves.give_up_silent():
            self._until = time.monotonic() + self._reserves.patience
        if not self._ranks.spares and not self._reserves.building and time.monotonic() > self._until:
            raise self._loop.end(
                CapacityError.of(
                    asked=f"a new worker for {name_ranks(self._open)}",
                    there="none in time",
                    mend="add nodes; nothing was trained yet",
                )
            )
