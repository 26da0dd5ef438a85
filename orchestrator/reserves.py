"""Workers beyond those that train: spares, others that are started when one is lost, and a world that grows again.

Called by `regrouping.py` and `moving.py`, which decide when ranks are dealt anew. The ranks are in `ranks.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace

from orchestrator.causes import in_words
from orchestrator.errors import name_ranks
from orchestrator.loop import Loop
from orchestrator.notice import notice
from orchestrator.ranks import Ranks
from orchestrator.recovery import Placement
from orchestrator.spec import WorkersSpec

__all__ = ["Reserves"]

LATE = 0.8  # of the patience: a worker that has a place and is not up by then will not come
FAILURES = 3  # reserves lost in a row, after which no more are started


class Reserves:
    """The workers of a run that hold no rank yet.

    Args:
        loop: what comes.
        ranks: who is who.
        workers: what the job says.
        patience: seconds that a run waits for a new worker which it can't do without.
        silence: seconds without a pulse after which a worker that builds is given up.

    Attributes:
        grow: called when there are workers with which the world can grow; has the ranks stand at a cut.
    """

    def __init__(self, loop: Loop, ranks: Ranks, workers: WorkersSpec, *, patience: float, silence: float) -> None:
        self.patience = patience
        self.grow: Callable[[], None] = lambda: None
        self._loop = loop
        self._ranks = ranks
        self._workers = workers
        self._silence = silence
        self._failures = 0
        self._asked: dict[int, float] = {}  # worker that is not up → when it was first waited for
        ranks.ready = self._on_ready

    @property
    def minimum(self) -> int | None:
        """With how many ranks training may go on; None: only with all."""
        return self._workers.min

    @property
    def goal(self) -> int:
        """How many ranks there shall be, if there can be."""
        return self._workers.most

    @property
    def ready(self) -> int:
        """How many workers wait on nodes that stay."""
        return len([worker for worker in self._ranks.spares if worker not in self._loop.facts.draining])

    @property
    def usable(self) -> int:
        """By how many ranks the world could grow now."""
        return self._growth(len(self._ranks.spares), self._ranks.world_size)

    @property
    def building(self) -> bool:
        """Whether a worker that was started later builds, which may rightly take long."""
        return bool(self._loop.facts.building & self._ranks.coming)

    def suffice(self, left: int) -> bool:
        """Whether so many ranks and the workers that wait are enough to go on with, though some are missing."""
        return self.minimum is not None and left + len(self._ranks.spares) >= max(self.minimum, 1)

    def give_up_silent(self) -> bool:
        """Lose those that build and have given no sign of life for too long, or have a place and never gave one.

        Returns:
            Whether some were lost, and others are worth waiting for instead.
        """
        now, lost = time.monotonic(), self._loop.facts.lost
        for worker in self._loop.facts.building & self._ranks.coming:
            if now - self._loop.heard_at.setdefault(worker, now) > self._silence:
                lost[worker] = f"it gave no sign of life for {self._silence:g} s while it built"
        late = [worker for worker in self._ranks.coming - self._loop.facts.places.keys() if self._is_late(worker, now)]
        lost.update(dict.fromkeys(late, f"it has a place, and said nothing for {LATE * self.patience:g} s"))
        silent = bool(self._ranks.coming & lost.keys())
        if silent:
            self._loop.recover()
        return silent and self._failures < FAILURES

    def _is_late(self, worker: int, now: float) -> bool:
        """Whether a worker is not up in time although there is room for it; to wait for room is no fault of its own."""
        if now - self._asked.setdefault(worker, now) <= LATE * self.patience:
            return False
        self._asked[worker] = now
        return self._loop.group.shortage() is None

    def want(self, number: int, *, avoid: Collection[str] = (), gives_way: bool = False) -> int:
        """See that so many workers are there, or on their way.

        Args:
            number: of workers.
            avoid: ids of nodes on which those that are started now shall not be, beside those that are suspected.
            gives_way: whether those that are started now give way to others, who train.

        Returns:
            How many were started for that.
        """
        missing = max(0, number - self.ready - len(self._ranks.coming))
        for _ in range(missing):
            self._ranks.add(avoid=sorted(self._loop.suspects | set(avoid)), gives_way=gives_way)
        return missing

    def instead_of_one(self, workers: Collection[int]) -> int | None:
        """Which member is given up where these live, but could not meet: the last one, if there is somebody instead.

        Else somebody is asked for, on another node, so that one can be given up if they do not meet the next time.

        Args:
            workers: those that told so.

        Returns:
            The worker; None: all shall try once more.
        """
        facts = self._loop.facts
        last = max(workers, key=lambda worker: facts.ranks[worker])
        told = f"ranks can't reach each other (as told by {name_ranks(facts.ranks[worker] for worker in workers)}):"
        builds = [worker for worker in self._ranks.coming if worker in facts.places]
        if self.ready or builds or self.suffice(self._ranks.world_size - 1):
            notice(f"{told} rank {facts.ranks[last]} is given up")
            return last
        notice(f"{told} another worker is asked for, and they try once more")
        self.want(1, avoid=[facts.places[last].node])
        return None

    def refill(self) -> None:
        """After a change: start what is missing to the full number, in the background."""
        if self._failures < FAILURES:
            missing = self.goal - self._ranks.world_size if self._workers.elastic else 0
            self.want(max(0, missing) + self._workers.spares, gives_way=True)

    def lose(self, worker: int, *, refill: bool = True) -> None:
        """A worker is lost that held no rank.

        Args:
            worker: which one.
            refill: whether another one is started for it at once; before training nobody needs it yet.
        """
        lost = self._loop.facts.loss_of(worker)
        del self._loop.facts.lost[worker]
        self._loop.group.kill(worker)
        self._ranks.forget(worker)
        self._ranks.tell(replace(lost, rank=None))
        self._failures += 1
        more = "" if self._failures < FAILURES else "; no more are started until one is"
        notice(f"a spare was lost: {in_words(lost.text)}{more}")
        if refill:
            self.refill()

    def enlarge(self, placement: Placement) -> Placement:
        """The placement with as many more ranks as there are workers for."""
        taken = set(placement.workers.values())
        free = [worker for worker in self._ranks.spares if worker not in taken]
        more = free[: self._growth(len(free), placement.world_size)]
        if not (self._workers.elastic and more):
            return placement
        world = placement.world_size
        workers = {**placement.workers, **{world + number: worker for number, worker in enumerate(more)}}
        return replace(placement, workers=workers, world_size=len(workers))

    def _growth(self, free: int, world_size: int) -> int:
        """How many of the free workers a world may take in; spares stay spares where as many train as shall."""
        kept = self._workers.spares if world_size >= self._workers.count else 0
        return max(0, min(free - kept, self.goal - world_size))

    def _on_ready(self, worker: int) -> None:
        """A worker has built, and waits."""
        self._failures = 0
        facts = self._loop.facts
        moving = any(member in facts.draining for member in self._ranks.members)
        if moving or (self._workers.elastic and self.usable):
            self.grow()
