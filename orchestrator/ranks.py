"""From workers to ranks: start them, deal the ranks, have them build and join; then they are ready to train.

Orders to one rank or all go through here too, since only this file knows which worker holds which rank. Called by the
run; what happens in training is in `gatekeeper.py` and `asking.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from orchestrator.errors import StartError, name_ranks
from orchestrator.journal import Journal
from orchestrator.lifecycle import Lifecycle, Phase
from orchestrator.loop import Loop
from orchestrator.notice import notice
from workers.messages import Built, Hello, Joined
from workers.orders import Build, Join, Order
from workers.parcels import LoadPoint
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
    """

    def __init__(self, loop: Loop, life: Lifecycle, journal: Journal, *, world_size: int, start_timeout: float) -> None:
        self.world_size = world_size
        self._loop = loop
        self._life = life
        self._journal = journal
        self._timeout = start_timeout
        self._workers: list[int] = []  # rank → worker
        self._members: dict[int, Membership] = {}
        self._built: dict[int, Built] = {}
        self._joined: set[int] = set()
        loop.handle({Hello: self._on_hello, Built: self._on_built, Joined: self._on_joined})

    def start(self) -> None:
        """Start the workers; returns before they are up."""
        self._life.enter(Phase.PLACING)
        self._loop.group.start()

    def place(self) -> None:
        """Give each worker its rank when all are up."""
        group, facts = self._loop.group, self._loop.facts
        self._until(lambda: len(facts.places) == group.size, "start", lambda: range(group.size) - facts.places.keys())
        self._members = deal_ranks(facts.places, generation=0)
        self._workers = sorted(self._members, key=lambda worker: self._members[worker].rank)
        for worker, member in self._members.items():  # the world is the ranks that train, without spares
            self._members[worker] = replace(member, world_size=self.world_size)
        facts.ranks = {worker: member.rank for worker, member in self._members.items()}

    def build(self, order: Callable[[Membership], Build]) -> None:
        """Have every worker build the program; spares too."""
        self._life.enter(Phase.BUILDING)
        self._loop.facts.building.update(self._workers)
        for worker in self._workers:
            self._loop.group.order(worker, order(self._members[worker]))
        self._until(
            lambda: len(self._built) == len(self._workers),
            "build",
            lambda: self._members.keys() - self._built.keys(),
            patient=True,
        )

    def join(self, store: tuple[str, int] | None, *, timeout: float, load: LoadPoint | None) -> None:
        """Have the ranks form their process group and take up their state; `timeout` is that of a collective."""
        self._life.enter(Phase.JOINING)
        training = self._workers[: self.world_size]
        for worker in training:
            order = Join(membership=self._members[worker], store=store, timeout=timeout, load=load)
            self._loop.group.order(worker, order)
        self._until(
            lambda: len(self._joined) == len(training),
            "join",
            lambda: set(training) - self._joined,
            patient=load is not None,
        )
        for rank, worker in enumerate(training):
            place, device = self._loop.facts.places[worker], self._built[worker].device
            self._journal.write(
                "WORKER_JOINED", rank=rank, pid=place.pid, node=place.node, host=place.host, device=device
            )

    def order(self, rank: int, order: Order) -> None:
        """Send an order to one rank."""
        self._loop.group.order(self._workers[rank], order)

    def order_all(self, order: Order) -> None:
        """Send the same order to all ranks."""
        for rank in range(self.world_size):
            self.order(rank, order)

    @property
    def engines(self) -> tuple[str, ...]:
        """Names of the program's engines."""
        return self._built[self._workers[0]].engines

    @property
    def data(self) -> dict[str, Any]:
        """Fingerprint of the trainer's data; empty if it has no global order."""
        return dict(self._built[self._workers[0]].data)

    @property
    def state(self) -> tuple[str, ...]:
        """Names of the entries of the program's state."""
        return tuple(self._built[self._workers[0]].state_bytes)

    def empty_metrics(self, engine: str) -> dict[str, object]:
        """Empty copies of the metrics attached to an engine."""
        return dict(self._built[self._workers[0]].metrics.get(engine, {}))

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
            if time.monotonic() > until:
                until += self._timeout
                ranks = [self._loop.facts.ranks.get(worker, worker) for worker in missing()]
                if patient:
                    notice(f"still waiting for {name_ranks(ranks)} to {step}")
                    continue
                free = self._loop.group.shortage() if step == "start" else None
                raise StartError.late(ranks, step=step, seconds=self._timeout, free=free)

    def _on_hello(self, message: Hello) -> None:
        self._loop.facts.places[message.worker] = message.place

    def _on_built(self, message: Built) -> None:
        self._built[message.worker] = message
        self._journal.write(
            "WORKER_BUILT", rank=message.rank, seconds=round(message.seconds, 3), state_bytes=dict(message.state_bytes)
        )
        self._loop.facts.building.discard(message.worker)

    def _on_joined(self, message: Joined) -> None:
        self._joined.add(message.worker)
