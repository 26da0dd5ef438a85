"""After a fault: stop the ranks that are left, judge, put others in the place of the lost, have all go back and go on.

Everything happens on the driver's thread, inside whatever it was pumping for; that goes on when the ranks are whole
again, and never learns. A fault in the middle of this begins it anew. What to do is decided in `recovery.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Literal

from orchestrator.budgets import Budgets, Progress
from orchestrator.causes import APART
from orchestrator.cluster_events import WorldResized
from orchestrator.episode import Episode, Way, keep_newest, loss_in_words
from orchestrator.errors import RankfireError
from orchestrator.lifecycle import Lifecycle, Phase
from orchestrator.loop import Loop
from orchestrator.notice import notice
from orchestrator.ranks import Ranks
from orchestrator.recovery import Placement, Recover, Stop, choose_snapshot, judge, place_losses
from orchestrator.reserves import Reserves
from orchestrator.spec import RecoverySpec
from workers.left_behind import left_behind
from workers.messages import (
    Answer,
    Built,
    Fault,
    Hello,
    Mended,
    Message,
    Observed,
    Pulse,
    Saved,
    SnapshotTaken,
    Stopped,
)
from workers.orders import Abort
from workers.parcels import LoadPoint, Rewind, SnapshotLabel

__all__ = ["Regrouping"]

TIMELESS = (Pulse, Saved, SnapshotTaken, Observed, Hello, Built, Mended)
"""What is true in any generation: of a worker, its state, its past. What it observed since the snapshot comes again."""
_IN_TRAINING = {Phase.JOINING, Phase.RECOVERING, Phase.RUNNING, Phase.GATE}


class Regrouping:
    """Makes the ranks of a run whole again.

    Args:
        loop: what comes.
        life: the run's phase.
        ranks: who is who.
        reserves: where others come from.
        way: what else is to be done.
        spec: what the job says.
        unblock: seconds in which a rank must have let go of the old generation; then it is given up.

    Attributes:
        early: mends what is lost before the ranks join for the first time, if it can.
        budgets: how often the run is recovered.
    """

    def __init__(
        self,
        loop: Loop,
        life: Lifecycle,
        ranks: Ranks,
        reserves: Reserves,
        way: Way,
        spec: RecoverySpec,
        *,
        unblock: float = 5.0,
    ) -> None:
        self._loop = loop
        self._life = life
        self._ranks = ranks
        self._reserves = reserves
        self._way = way
        self._spec = spec
        self._unblock = unblock
        self.early: Callable[[], bool] = lambda: False
        self.budgets = Budgets(spec.restarts)
        self._progress = Progress()
        self._judged = -1  # the generation that was judged last
        self._own: dict[int, dict[SnapshotLabel, bytes]] = {}  # worker → its own part of snapshots, oldest first
        self._stopped: dict[int, Stopped] = {}
        self._gone: set[int] = set()  # workers that were given up: whatever they still say is not heard
        self._episode: Episode | None = None
        self._stage: Literal["stop", "place"] | None = None  # before the next generation's members have been told
        loop.fresh = self._fresh
        loop.recover = self._recover
        ranks.late = self._late
        loop.handle({SnapshotTaken: self._on_snapshot, Stopped: self._on_stopped})

    # ---------------------------------------------------------------- what comes
    def _fresh(self, message: Message) -> bool:
        """Whether a message is of use: not from somebody given up, nor of a generation that is gone."""
        if message.worker in self._gone:
            return False
        if isinstance(message, Fault) and message.kind != "communication":
            return True
        if isinstance(message, Answer) and message.of_user:
            return True
        timeless = isinstance(message, TIMELESS) or message.worker not in self._ranks.members
        return timeless or message.generation == self._ranks.generation

    def _on_snapshot(self, message: SnapshotTaken) -> None:
        keep_newest(self._own.setdefault(message.worker, {}), message.label, message.own)

    def _on_stopped(self, message: Stopped) -> None:
        self._stopped[message.worker] = message
        self._loop.killed.hear(message)

    # ---------------------------------------------------------------- a fault
    def _recover(self) -> bool:
        """Mend what the loop's facts tell of; False if that can't be, and the run is to end."""
        facts, members = self._loop.facts, self._ranks.members
        if self._life.phase in {Phase.PLACING, Phase.BUILDING}:
            return self.early()
        if self._life.phase not in _IN_TRAINING:
            return False
        facts.lose(lambda fault: fault.worker in self._ranks.coming)
        if self._spec.on_loss == "recover":  # its process may hold on to too much: another one takes its place
            facts.lose(lambda fault: fault.kind == "memory", "out of memory: ")
        for worker in [worker for worker in facts.lost if worker not in members]:
            self._gone.add(worker)
            self._reserves.lose(worker)
        if not (facts.lost or facts.faults or facts.standing):
            return True
        if any(fault.kind != "communication" for fault in facts.faults):
            return False
        if self._stage is None:
            try:
                self.mend()
            except RankfireError as error:  # of storage, or of ranks that do not join
                raise self._loop.end(error) from error
        elif self._stage == "place":  # nobody has joined the new generation yet: it will be without these
            self._settle()
        return True

    def mend(self, *, fault: bool = True) -> None:
        """Form another generation, whatever happens meanwhile; one that is lost while they join begins this anew.

        Args:
            fault: whether something went wrong; else the world only grows.
        """
        if self._episode is None:
            self._episode = Episode(time.monotonic(), fault)
        self._episode.attempts += 1
        generation = self._ranks.announce()
        self._life.enter(Phase.RECOVERING)
        self._way.pause()
        try:
            self._stage = "stop"
            self._stop(generation)
            self._stage = "place"
            if (facts := self._loop.facts).lost or facts.faults or facts.standing:
                self._settle()
            placement = self._place()
        finally:
            self._stage = None
        before = self._ranks.members
        members = [placement.workers[rank] for rank in range(placement.world_size)]
        rewinds, load = self._way_back(placement, before)
        for old in set(range(len(before))) - set(placement.takes.values()):
            self._episode.untaken[before[old]] = self._own.get(before[old], {})
        self._ranks.deal(members)
        for rank, old in placement.takes.items():  # who takes a place has what its holder told, until it tells itself
            self._own[members[rank]] = dict(self._own.get(before[old], {}))
        if rewinds is None and load is None:
            self._ranks.rebuild()
        self._way.join(rewinds, load)
        if self._ranks.generation == generation:
            self._done(before, rewinds, load)

    def _late(self) -> bool:
        """They do not join: begin anew, once; one that hangs will not let go, and is lost."""
        assert self._episode is not None, "ranks join without a fault"
        again, self._episode.late = not self._episode.late, True
        if again:
            self.mend()
        return again

    def _stop(self, generation: int) -> None:
        """Have everybody left let go of the old generation; who does not is lost too."""
        facts = self._loop.facts
        until = time.monotonic() + self._unblock
        self._stopped.clear()
        left = [worker for worker in self._ranks.members if worker not in facts.lost]
        for worker in left:
            self._loop.group.order(worker, Abort(generation=generation))
        while waiting := [worker for worker in left if worker not in self._stopped and worker not in facts.lost]:
            self._loop.pump(timeout=max(0.0, min(0.1, until - time.monotonic())))
            if time.monotonic() > until:
                facts.hung.update(waiting)
                facts.lost.update(dict.fromkeys(waiting, f"it did not let go within {self._unblock:g} s of a fault"))
                break

    def _settle(self) -> None:
        """Judge what is known by now; who is lost is buried.

        Raises:
            RankfireError: the run is not to be recovered.
        """
        facts, ranks = self._loop.facts, self._ranks
        self._loop.killed.mark()
        facts.spares = {*ranks.spares, *ranks.coming}
        words: list[Fault | Stopped | Pulse] = [*facts.faults, *self._stopped.values(), *self._loop.pulses.values()]
        seen = [word.iteration for word in words]
        assert self._episode is not None, "a judgement without a fault"
        self._episode.reached = max(self._episode.reached, *seen, 0)
        again = self._judged == ranks.generation  # nothing was tried in between, so nothing has failed once more
        apart = [fault.worker for fault in facts.faults] if self._episode.attempts > 1 and not facts.lost else []
        progress, self._judged = Progress() if again or apart else self._progress, ranks.generation
        decision = judge(
            facts,
            budgets=self.budgets,
            progress=progress,
            now=time.monotonic(),
            iteration=max(seen, default=None),
            gate=self._way.gate(),
            on_loss=self._spec.on_loss,
            samples=self._way.samples,
        )
        if isinstance(decision, Stop):
            raise self._loop.end(decision.error)
        until = time.monotonic()
        if isinstance(decision, Recover):
            self._episode.fault, until = True, until + decision.pause
            self._episode.causes.extend(decision.causes)
        if apart and (given_up := self._reserves.instead_of_one(apart)) is not None:
            facts.lost[given_up] = APART
        self._bury()
        while (left := until - time.monotonic()) > 0:
            self._loop.pump(timeout=left)

    def _bury(self) -> None:
        """End the processes of the lost, tell who they were and why, and forget them."""
        facts, episode = self._loop.facts, self._episode
        assert episode is not None, "a burial without a fault"
        for worker in [worker for worker in self._ranks.members if worker in facts.lost]:
            lost = episode.lost[worker] = facts.loss_of(worker)
            del facts.lost[worker]
            self._gone.add(worker)
            self._loop.group.kill(worker)
            notice(loss_in_words(lost))
            self._way.tell(lost)
            self._ranks.forget(worker)
        facts.faults.clear()
        facts.standing = ""

    def _place(self) -> Placement:
        """Who is who in the next generation; waits for new workers where they are needed.

        Raises:
            CapacityError: they did not come.
        """
        until = time.monotonic() + self._reserves.patience
        while True:
            if self._reserves.give_up_silent() or self._reserves.building:
                until = time.monotonic() + self._reserves.patience
            members = dict(enumerate(self._ranks.members))
            lost = [rank for rank, worker in members.items() if worker in self._gone]
            placement = place_losses(
                members,
                lost,
                self._ranks.spares,
                nodes={worker: place.node for worker, place in self._loop.facts.places.items()},
                can_start=not self._reserves.suffice(len(members) - len(lost)) and time.monotonic() < until,
                minimum=self._reserves.minimum,
            )
            if isinstance(placement, Stop):
                raise self._loop.end(placement.error)
            if not placement.start:
                return self._reserves.enlarge(placement)
            started = self._reserves.want(len(lost))  # those that are taken already are among those that are ready
            if started:
                notice(f"starting {'a worker' if started == 1 else f'{started} workers'} in place of what was lost")
            self._loop.pump(timeout=0.1)

    def _way_back(self, placement: Placement, before: list[int]) -> tuple[dict[int, Rewind] | None, LoadPoint | None]:
        """The snapshot that all take up, by rank; else the checkpoint; neither: all begin anew."""
        words = {rank: self._stopped.get(placement.workers[rank]) for rank in placement.former}
        held = {rank: word.held for rank, word in words.items() if word is not None and word.held}
        own: dict[int, Mapping[SnapshotLabel, bytes]] = {
            rank: self._own.get(before[old], {}) for rank, old in placement.takes.items() if rank not in held
        }
        label = choose_snapshot(held, own, list(own))
        if label is None:
            return None, self._way.checkpoint()
        came = tuple(rank for rank in range(placement.world_size) if rank not in held)
        return {
            rank: Rewind(label=label, donor=min(held), newcomers=came, own=own[rank][label] if rank in own else None)
            for rank in range(placement.world_size)
        }, None

    def _done(self, before: list[int], rewinds: dict[int, Rewind] | None, load: LoadPoint | None) -> None:
        """The ranks are whole: everybody who waits for them goes on."""
        episode, self._episode = self._episode, None
        assert episode is not None, "nothing was mended"
        now = self._ranks.members
        self._own = {worker: known for worker, known in self._own.items() if worker in now}
        self._ranks.tell_joined([worker for worker in now if worker not in before])
        label = rewinds[0].label if rewinds else None
        for own in episode.left_at(label):
            self._way.leave_behind(left_behind(own))
        world, generation = len(now), self._ranks.generation
        recovered = episode.recovered(label or load, world_size=world, generation=generation)
        if (told := episode.in_words(recovered, len(before))) is not None:
            notice(told)
        self._way.regrouped(episode.lost.keys(), load.at if label is None and load is not None else label)
        self._reserves.refill()
        self._way.go()
        if world != len(before):
            self._way.tell(WorldResized(before=len(before), after=world, generation=generation))
        if episode.fault or label is None:
            self._way.tell(recovered)
