"""From workers to ranks: start them, deal the ranks, have them build and join; then they are ready to train.

Orders to one rank or all go through here too, since only this file knows which worker holds which rank; and who takes
whose place after a fault. Called by `run.py`, and by `regrouping.py` after a fault; what happens in training is in
`gatekeeper.py` and `asking.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from orchestrator.cluster_events import Payload, WorkerJoined
from orchestrator.errors import StartError, name_ranks
from orchestrator.journal import Journal
from orchestrator.lifecycle import Lifecycle, Phase
from orchestrator.loop import Loop
from orchestrator.notice import notice
from orchestrator.programs import Programs
from orchestrator.skew import check_same, other_versions
from workers.messages import Built, Hello, Joined
from workers.orders import Build, Join, Order
from workers.parcels import LoadPoint, Rewind
from workers.rank import Membership, deal_ranks

__all__ = ["Ranks"]


class Ranks:
    """The ranks of a run.

    Args:
        loop: how to wait for them.
        life: the run's phase.
        journal: the run's record.
        world_size: how many train; workers beyond that are spares, which build and wait.
        start_timeout: seconds for each step; for one that may rightly take long, seconds between two notices.

    Attributes:
        generation: number of the membership; every message of a member carries it.
        starting: whether the cluster that holds them is being found or started.
        spares: workers that have built and wait.
        coming: workers that were started later, and have not built yet.
        ready: called with each of these when it has built.
        told: called with the ranks to which an order goes.
        tell: called with each cluster event.
        programs: what the workers have built.
        fill: called with a worker that is up or has built and holds no rank; whether it takes one that is open.
        late: called when they do not join in time after a fault; whether another generation is tried then.
    """

    def __init__(self, loop: Loop, life: Lifecycle, journal: Journal, *, world_size: int, start_timeout: float) -> None:
        self.world_size = world_size
        self.generation = 0
        self.starting = False
        self.spares: list[int] = []
        self.coming: set[int] = set()
        self.ready: Callable[[int], None] = lambda worker: None
        self.tell: Callable[[Payload], None] = lambda payload: None
        self.fill: Callable[[int], bool] = lambda worker: False
        self.late: Callable[[], bool] = lambda: False
        self.told: Callable[[list[int]], None] = lambda ranks: None
        self._loop = loop
        self._life = life
        self._journal = journal
        self._timeout = start_timeout
        self._workers: list[int] = []  # rank → worker
        self._members: dict[int, Membership] = {}
        self.programs = Programs(journal)
        self._told: set[int] = set()  # workers that have been told as joined
        self._expected: set[int] = set()  # workers of the start
        self._joined: dict[int, int] = {}  # worker → samples that it had consumed by then
        self._started = 0  # workers ever started: the next one's id
        self._build: Callable[[Membership], Build] | None = None
        loop.handle({Hello: self._on_hello, Built: self._on_built, Joined: self._on_joined})

    # ---------------------------------------------------------------- the start
    def start(self) -> None:
        """Start the workers; returns before they are up."""
        self._life.enter(Phase.PLACING)
        self._started = self._loop.group.size
        self.starting = True
        self._loop.group.start()
        self.starting = False

    def place(self) -> None:
        """Give each worker its rank when all are up."""
        group, facts = self._loop.group, self._loop.facts
        self._expected = set(range(group.size))
        self._until(
            lambda: facts.places.keys() >= self._expected, "start", lambda: self._expected - facts.places.keys()
        )
        self._members = deal_ranks(facts.places, generation=0)
        in_order = sorted(self._members, key=lambda worker: self._members[worker].rank)
        self._workers, self.spares = in_order[: self.world_size], in_order[self.world_size :]
        for worker, member in self._members.items():  # the world is the ranks that train, without spares
            self._members[worker] = replace(member, world_size=self.world_size)
        facts.ranks = {worker: member.rank for worker, member in self._members.items()}

    def build(self, order: Callable[[Membership], Build]) -> None:
        """Have every worker build the program; spares too."""
        self._life.enter(Phase.BUILDING)
        self._build = order
        for worker in [*self._workers, *self.spares]:
            self._order_build(worker)
        dealt = list(self._workers)

        def missing() -> set[int]:
            return {*self._workers, *self.spares} - self.programs.built.keys()

        self._until(lambda: not missing(), "build", missing, patient=True)
        if self._workers != dealt:
            self.deal(self._workers)
        self.programs.settle(self._workers[0])

    def stand_in(self, rank: int, worker: int) -> None:
        """While all build: a spare, or a worker just come up, takes a rank whose worker is lost, and builds as that."""
        self.coming.discard(worker)
        self._workers[rank] = worker
        self.spares = [spare for spare in self.spares if spare != worker]
        self.programs.built.pop(worker, None)
        places = {one: self._loop.facts.places[one] for one in self._workers if one in self._loop.facts.places}
        local = deal_ranks(places, generation=self.generation)[worker]
        self._members[worker] = replace(local, rank=rank, world_size=self.world_size)
        self._loop.facts.ranks[worker] = rank
        self._order_build(worker)

    def join(
        self,
        store: tuple[str, int] | None,
        *,
        timeout: float,
        forming: float = 15.0,
        load: LoadPoint | None = None,
        rewinds: Mapping[int, Rewind] | None = None,
    ) -> None:
        """Have the ranks form the process group of this generation and take up their state.

        Args:
            store: where they meet.
            timeout: of a collective, in seconds.
            forming: of forming the group, in seconds.
            load: the checkpoint that all take up.
            rewinds: rank → the snapshot that it takes up instead.
        """
        self._life.enter(Phase.JOINING)
        for rank, worker in enumerate(self._workers):
            member, rewind = self._members[worker], None if rewinds is None else rewinds[rank]
            order = Join(membership=member, store=store, timeout=timeout, forming=forming, load=load, rewind=rewind)
            self._loop.group.order(worker, order)
        generation = self.generation
        self._until(
            lambda: generation != self.generation or self._joined.keys() >= set(self._workers),
            "join",
            lambda: set(self._workers) - self._joined.keys(),
            patient=load is not None or any(self.programs.built[worker].shards for worker in self._workers),
        )

    def tell_joined(self, workers: Collection[int] | None = None) -> None:
        """Tell who has joined: these, or all who have not been told yet."""
        for rank, worker in enumerate(self._workers):
            if worker not in self._told if workers is None else worker in workers:
                self._told.add(worker)
                place, device = self._loop.facts.places[worker], self.programs.built[worker].device
                pid, node, host, now = place.pid, place.node, place.host, self.generation
                self.tell(WorkerJoined(rank=rank, pid=pid, node=node, host=host, device=device, generation=now))

    # ---------------------------------------------------------------- after the start
    @property
    def members(self) -> list[int]:
        """The workers that train, by rank."""
        return list(self._workers)

    def announce(self) -> int:
        """Another generation begins: what members still say of the one before is of no use. Gives its number."""
        self.generation += 1
        self._journal.generation = self.generation
        self._joined.clear()
        return self.generation

    def deal(self, workers: Sequence[int]) -> None:
        """Say who has which rank in this generation.

        Args:
            workers: its members, by rank; all have built.
        """
        self.world_size = len(workers)
        self.spares = [spare for spare in self.spares if spare not in workers]
        for rank in [rank for rank in self._loop.pulses if rank >= self.world_size]:
            del self._loop.pulses[rank]  # of a rank that there is no more: it would stand where it was for ever
        places = {worker: self._loop.facts.places[worker] for worker in workers}
        local = deal_ranks(places, generation=self.generation)
        self._workers = list(workers)
        for rank, worker in enumerate(workers):
            self._members[worker] = replace(local[worker], rank=rank)
            self._loop.facts.ranks[worker] = rank

    def add(self, *, avoid: Collection[str] = (), gives_way: bool = False) -> int:
        """Start one more worker, which builds as soon as it is up and then waits as a spare.

        Args:
            avoid: ids of nodes on which it shall not be.
            gives_way: whether others train while it starts.

        Returns:
            Its id.
        """
        worker, self._started = self._started, self._started + 1
        self.coming.add(worker)
        self._loop.facts.ranks[worker] = worker
        self._loop.group.add(worker, avoid=avoid, gives_way=gives_way)
        return worker

    def forget(self, worker: int) -> None:
        """A worker is gone."""
        self.coming.discard(worker)
        self._expected.discard(worker)
        if worker in self.spares:
            self.spares.remove(worker)
        for known in (self.programs.built, self._loop.facts.places, self._loop.facts.phases):
            known.pop(worker, None)
        self._loop.facts.building.discard(worker)

    def rebuild(self) -> None:
        """Have all members build anew: nothing is left of what they had."""
        assert self._build is not None, "nothing was built yet"
        for worker in self._workers:
            self._loop.group.order(worker, self._build(self._members[worker]))

    # ---------------------------------------------------------------- any time
    def order(self, rank: int, order: Order) -> None:
        """Send an order to one rank."""
        self.told([rank])
        self._loop.group.order(self._workers[rank], order)

    def order_all(self, order: Order) -> None:
        """Send the same order to all ranks."""
        for rank in range(self.world_size):
            self.order(rank, order)

    @property
    def samples(self) -> int:
        """Consumed in training by those who have joined, as of then."""
        return sum(self._joined.values())

    @property
    def state(self) -> tuple[str, ...]:
        """Names of the entries of the program's state."""
        return tuple(self.programs.built[self._workers[0]].state_bytes)

    def _until(
        self, done: Callable[[], bool], step: str, missing: Callable[[], set[int]], *, patient: bool = False
    ) -> None:
        """Pump until a step of the start is done.

        Args:
            done: whether it is.
            step: its name.
            missing: workers that are not done.
            patient: it may rightly take long (a user's `build`, a big checkpoint): say so from time to time.

        Raises:
            StartError: it took too long; names the ranks, and what is short.
        """
        until = time.monotonic() + self._timeout
        while not done():
            self._loop.pump(timeout=0.1)
            if time.monotonic() > until and not done():
                until += self._timeout
                ranks = [self._loop.facts.ranks.get(worker, worker) for worker in missing()]
                if step == "join" and self.generation and not patient and self.late():
                    continue
                if patient:
                    notice(f"still waiting for {name_ranks(ranks)} to {step}")
                    continue
                free = self._loop.group.shortage() if step == "start" else None
                raise self._loop.end(StartError.late(ranks, step=step, seconds=self._timeout, free=free))

    def _on_hello(self, message: Hello) -> None:
        self._loop.facts.places[message.worker] = message.place
        try:
            check_same(message.place, message.versions)
        except StartError as error:
            if message.worker not in self.coming:
                raise self._loop.end(error) from error
            self._loop.facts.lost[message.worker] = str(error)  # the run goes on without it
            self._loop.recover()
            return
        if (other := other_versions(message.versions)) is not None:
            self._journal.write("VERSIONS_DIFFER", worker=message.worker, node=message.place.node, text=other)
            notice(f"the worker on {message.place} has {other}; results may differ in their last bits")
        if message.worker in self.coming and not self.fill(message.worker):
            rank = self.world_size + len(self.spares)
            member = Membership(generation=self.generation, rank=rank, world_size=self.world_size)
            self._members[message.worker] = member
            self._order_build(message.worker)

    def _on_built(self, message: Built) -> None:
        place, members = self._loop.facts.places.get(message.worker), self._workers
        rank = members.index(message.worker) if message.worker in members else None
        self.programs.take(message, rank=rank, place=place)
        self._loop.facts.building.discard(message.worker)
        if message.worker in self.coming:
            self.coming.remove(message.worker)
            self.spares.append(message.worker)
            self.ready(message.worker)
        if message.worker in self.spares:
            self.fill(message.worker)

    def _order_build(self, worker: int) -> None:
        assert self._build is not None, "a worker came before the program was known"
        self._loop.facts.building.add(worker)
        self._loop.group.order(worker, self._build(self._members[worker]))

    def _on_joined(self, message: Joined) -> None:
        if message.generation == self.generation:
            self._joined[message.worker] = message.samples
