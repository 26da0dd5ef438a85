"""After a fault: stop the ranks that are left, judge, put others in the place of the lost, have all go back and go on.

Everything happens on the driver's thread, inside whatever it was pumping for; that goes on when the ranks are whole
again, and never learns. A fault in the middle of this begins it anew. What to do is decided in `recovery.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from orchestrator.journal import Journal
from orchestrator.lifecycle import Lifecycle, Phase
from orchestrator.loop import Loop
from orchestrator.notice import notice
from orchestrator.ranks import Ranks
from orchestrator.recovery import choose_snapshot
from workers.messages import Built, Fault, Hello, Message, Pulse, Saved, SnapshotTaken, Stopped
from workers.orders import Abort
from workers.parcels import LoadPoint, Rewind, SnapshotLabel

__all__ = ["Regrouping", "Way"]

KEPT = 3  # snapshots of a rank of which its own part is kept here: one more than the rank holds
TIMELESS = (Pulse, Saved, SnapshotTaken, Hello, Built)
"""What is true of a worker, or of its state, whatever generation it is in."""
_IN_TRAINING = {Phase.JOINING, Phase.RECOVERING, Phase.RUNNING, Phase.GATE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What regrouping needs of the run around it.

    Args:
        join: have the ranks form their group; gets the rewinds by rank, or the checkpoint to load.
        regrouped: called when the ranks have joined, with the workers that were lost.
        checkpoint: the newest valid checkpoint; None if there is none.
        go: have them train.
    """

    join: Callable[[dict[int, Rewind] | None, LoadPoint | None], None]
    regrouped: Callable[[Collection[int]], None]
    checkpoint: Callable[[], LoadPoint | None]
    go: Callable[[], None]


@dataclass(slots=True)
class Episode:
    """One fault, and what came of it while it was being mended."""

    began: float
    lost: dict[int, tuple[int, str]] = field(default_factory=dict)  # worker → the rank that it was, and how it went


class Regrouping:
    """Makes the ranks of a run whole again.

    Args:
        loop: what comes.
        life: the run's phase.
        ranks: who is who.
        journal: the record.
        way: what else is to be done.
        unblock: seconds in which a rank must have let go of the old generation; then it is given up.
    """

    def __init__(
        self, loop: Loop, life: Lifecycle, ranks: Ranks, journal: Journal, way: Way, *, unblock: float = 5.0
    ) -> None:
        self._loop = loop
        self._life = life
        self._ranks = ranks
        self._journal = journal
        self._way = way
        self._unblock = unblock
        self._own: dict[int, dict[SnapshotLabel, bytes]] = {}  # worker → its own part of snapshots, oldest first
        self._stopped: dict[int, Stopped] = {}
        self._gone: set[int] = set()  # workers that were given up: whatever they still say is not heard
        self._episode: Episode | None = None
        self._gathering = False  # whether the next generation's members are being found
        loop.fresh = self._fresh
        loop.recover = self._recover
        loop.handle({SnapshotTaken: self._on_snapshot, Stopped: self._on_stopped})

    # ---------------------------------------------------------------- what comes
    def _fresh(self, message: Message) -> bool:
        """Whether a message is of use: not from somebody given up, nor of a generation that is gone."""
        if message.worker in self._gone:
            return False
        if isinstance(message, Fault) and message.kind != "communication":
            return True
        timeless = type(message) in TIMELESS or message.worker not in self._ranks.members
        return timeless or message.generation == self._ranks.generation

    def _on_snapshot(self, message: SnapshotTaken) -> None:
        known = self._own.setdefault(message.worker, {})
        known.pop(message.label, None)
        known[message.label] = message.own
        while len(known) > KEPT:
            del known[next(iter(known))]

    def _on_stopped(self, message: Stopped) -> None:
        self._stopped[message.worker] = message

    # ---------------------------------------------------------------- a fault
    def _recover(self) -> bool:
        """Mend what the loop's facts tell of; False if that can't be, and the run is to end."""
        facts, members = self._loop.facts, self._ranks.members
        if not members or self._life.phase not in _IN_TRAINING:
            return False
        strangers = [worker for worker in facts.lost if worker not in members]
        for worker in strangers:
            self._lose_spare(worker)
        lost = [worker for worker in members if worker in facts.lost]
        if not lost and not facts.faults:
            return True
        if any(fault.kind != "communication" for fault in facts.faults):
            return False
        if self._gathering:
            self._bury()  # nobody has joined the new generation yet: it will be without these
        else:
            self._mend()
        return True

    def _mend(self) -> None:
        """Form another generation, whatever happens meanwhile; one that is lost while they join begins this anew."""
        if self._episode is None:
            self._episode = Episode(time.monotonic())
        generation = self._ranks.announce()
        self._life.enter(Phase.RECOVERING)
        self._gathering = True
        self._stop(generation)
        members = self._place()
        self._gathering = False
        rewinds, load = self._way_back(members)
        before = self._ranks.members
        self._ranks.deal(members)
        for old, new in zip(before, members, strict=False):  # who takes a place has what its holder told until it tells
            self._own[new] = dict(self._own.get(old, {}))
        if rewinds is None and load is None:
            self._ranks.rebuild()
        self._way.join(rewinds, load)
        if self._ranks.generation == generation:
            self._done(before, rewinds)

    def _stop(self, generation: int) -> None:
        """Have everybody left let go of the old generation; who does not is lost too."""
        facts = self._loop.facts
        until = time.monotonic() + self._unblock
        self._stopped.clear()
        self._bury()
        left = [worker for worker in self._ranks.members if worker not in self._gone]
        for worker in left:
            self._loop.group.order(worker, Abort(generation=generation))
        while waiting := [worker for worker in left if worker not in self._stopped and worker not in self._gone]:
            self._loop.pump(timeout=max(0.0, min(0.1, until - time.monotonic())))
            if time.monotonic() > until:
                for worker in waiting:
                    facts.lost[worker] = f"it did not let go within {self._unblock:g} s of a fault elsewhere"
                self._bury()

    def _bury(self) -> None:
        """End the processes of the lost, write down who they were, and forget them."""
        facts, episode = self._loop.facts, self._episode
        assert episode is not None, "a burial without a fault"
        for worker in [worker for worker in self._ranks.members if worker in facts.lost]:
            cause, place = facts.lost.pop(worker), facts.places.get(worker)
            rank = facts.ranks[worker]
            episode.lost[worker] = rank, cause
            self._gone.add(worker)
            self._loop.group.kill(worker)
            self._journal.write(
                "WORKER_LOST",
                rank=rank,
                pid=None if place is None else place.pid,
                node=None if place is None else place.node,
                cause=cause,
            )
            self._ranks.forget(worker)
        facts.faults.clear()

    def _place(self) -> list[int]:
        """Who is who in the next generation, by rank."""
        ranks = self._ranks
        while True:
            members = ranks.members
            vacant = [rank for rank, worker in enumerate(members) if worker in self._gone]
            if len(ranks.spares) >= len(vacant):
                break
            while len(ranks.spares) + len(ranks.coming) < len(vacant):
                ranks.add()
            self._loop.pump(timeout=0.1)
        for rank, spare in zip(vacant, list(ranks.spares), strict=False):
            members[rank] = spare
        return members

    def _way_back(self, members: list[int]) -> tuple[dict[int, Rewind] | None, LoadPoint | None]:
        """The snapshot that all take up, by rank; else the checkpoint; neither: all begin anew."""
        before = self._ranks.members
        stayed = [rank for rank, worker in enumerate(members) if worker in before and self._stopped[worker].held]
        came = [rank for rank in range(len(members)) if rank not in stayed]
        held = {rank: self._stopped[members[rank]].held for rank in stayed}
        own = {rank: self._own.get(before[rank], {}) for rank in came}
        label = choose_snapshot(held, own, came)
        if label is None:
            return None, self._way.checkpoint()
        donor = stayed[0]
        return {
            rank: Rewind(label=label, donor=donor, newcomers=tuple(came), own=own[rank][label] if rank in own else None)
            for rank in range(len(members))
        }, None

    def _done(self, before: list[int], rewinds: dict[int, Rewind] | None) -> None:
        """The ranks are whole: everybody who waits for them goes on."""
        episode, self._episode = self._episode, None
        assert episode is not None, "nothing was mended"
        now = self._ranks.members
        self._own = {worker: known for worker, known in self._own.items() if worker in now}
        self._ranks.tell_joined([worker for worker in now if worker not in before])
        seconds = time.monotonic() - episode.began
        label = rewinds[0].label if rewinds else None
        self._journal.write(
            "RECOVERED", generation=self._ranks.generation, seconds=round(seconds, 3), snapshot=str(label)
        )
        told = "; ".join(f"rank {rank}: {cause}" for rank, cause in episode.lost.values())
        back = "the newest checkpoint" if label is None else str(label)
        notice(f"recovered in {seconds:.2f} s, back to {back} ({told or 'ranks lost contact'})")
        self._way.regrouped(episode.lost.keys())
        self._way.go()

    def _lose_spare(self, worker: int) -> None:
        cause = self._loop.facts.lost.pop(worker)
        self._gone.add(worker)
        self._loop.group.kill(worker)
        self._ranks.forget(worker)
        self._journal.write("SPARE_LOST", worker=worker, cause=cause)
        notice(f"a spare was lost: {cause}")
