"""The world of a simulation: what happens next, in an order drawn from a seed; and the group that the driver speaks to.

Time stands still while anybody works. Orders and words of one worker keep their order, those of several workers do not.
Strikes (`striking.py`) happen where a rank comes by.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from typing import NoReturn

from orchestrator.exchange import Incoming, Interrupt, Lost
from orchestrator.signals import StopNow
from tests.simulation.clock import Clock
from tests.simulation.config import Config
from tests.simulation.faults import Strike
from tests.simulation.life import BEAT, Life
from tests.simulation.memory import Disk
from tests.simulation.network import Network
from tests.simulation.oracle import Oracle
from tests.simulation.rank import Rank
from tests.simulation.striking import Striker
from workers.messages import Fault, Message, Pulse
from workers.orders import Abort, Go, Join, Leave, Order, acts_at_once
from workers.rank import Membership

__all__ = ["World"]

DEADLINE = 2000.0  # seconds in which every run ends, or stands still for ever


class World:
    """One simulated run's surroundings.

    Args:
        config: what is run.
        seed: from which every choice is drawn.
        strikes: what goes wrong.
        oracle: knows what must come out.
        disk: where the run's folder is.
    """

    needs_store = True

    def __init__(self, config: Config, seed: str, strikes: list[Strike], oracle: Oracle, disk: Disk) -> None:
        self.config = config
        self.oracle = oracle
        self.disk = disk
        self.strikes = strikes
        self.clock = Clock()
        self.rng = random.Random(seed)
        self.ranks: dict[int, Rank] = {}  # worker → it, as long as it is in the group
        self.dead: list[Rank] = []
        self.trace: list[tuple[float, str, object]] = []
        self.size = config.workers["count"] + config.workers["spares"]
        self.drains: dict[str, float] = {}
        self.stopped = False
        self.starved = False  # whether a worker that was asked for could not be started
        self.trains = False  # whether training has begun
        self.evaluations = 0
        self.users: list[str] = []  # exceptions of the program of which the driver has heard
        self.members: Callable[[], list[int]] = list  # workers that hold ranks
        self._slow = {worker: self.rng.choice((0.5, 1.0, 1.0, 3.0)) for worker in range(100)}
        self._happenings: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._inbox: deque[Incoming] = deque()
        self._ended: set[int] = set()  # workers that `kill` was called for
        self._networks: dict[int, Network] = {}
        self._free: dict[tuple[int, str], float] = {}  # line → when what was sent before is through
        self._flying: dict[int, list[list[Message | None]]] = {}
        self.unheard: set[int] = set()  # workers whose stream broke though they live
        self._generations: Counter[int] = Counter()
        self._waiting: list[int] = []  # added workers for which there is no room
        self.astray: tuple[int, int] | None = None  # iteration and rank that go into a collective of their own there
        self.stop_now = False  # the user presses Ctrl-C for the second time
        self.strike = Striker(self, strikes)

    # ---------------------------------------------------------------- chance
    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def between(self, least: float, most: float) -> float:
        return self.rng.uniform(least, most)

    def pace(self, worker: int) -> float:
        return self._slow[worker]

    def jitter(self) -> float:
        """Seconds that something takes which takes no time: now and then it takes some."""
        draw = self.rng.random()
        return draw * 0.004 if draw < 0.93 else draw * 0.25

    # ---------------------------------------------------------------- what happens
    def later(self, seconds: float, what: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._happenings, (self.clock.now + seconds, self._number, what))

    def note(self, who: str, what: object) -> None:
        self.trace.append((self.clock.now, who, what))

    def violate(self, text: str) -> NoReturn:
        """What must never be has happened."""
        self.oracle.violate(text)

    def take(self, timeout: float) -> Incoming | None:
        """What comes next; whatever else happens until then happens."""
        self.clock.now += self.rng.random() * 0.002
        until = self.clock.now + timeout
        while True:
            self._let_happen(self.clock.now)
            if self.stop_now:
                self.stop_now = False
                raise StopNow
            if self._inbox:
                return self._hear(self._inbox.popleft())
            if not self._happenings or self._happenings[0][0] > until:
                self.clock.now = max(until, self.clock.now)
                return None
            self._let_happen(self._happenings[0][0])

    def _let_happen(self, until: float) -> None:
        if until > DEADLINE:
            self.violate(f"the run does not end: {self._standing()}")
        while self._happenings and self._happenings[0][0] <= until:
            at, _, what = heapq.heappop(self._happenings)
            self.clock.now = max(self.clock.now, at)
            what()

    def _hear(self, came: Incoming) -> Incoming:
        if not isinstance(came, Pulse):
            self.note("driver hears", came)
        heeded = isinstance(came, Fault) and (not self.trains or came.worker in self.members())
        if isinstance(came, Fault) and came.kind == "user" and heeded:  # that of a reserve is a loss
            self.users.append(came.failure.text)
        return came

    def _standing(self) -> str:
        return "; ".join(
            f"worker {worker} (rank {rank.membership.rank} of generation {rank.membership.generation}) is {rank.phase}"
            + (", silent" if rank.silent else "") + (", stuck" if rank.stuck else "") + ("" if rank.alive else ", dead")
            for worker, rank in self.ranks.items()
        )  # fmt: skip

    # ---------------------------------------------------------------- the group
    def start(self) -> None:
        for worker in range(self.size):
            self._bring_up(worker, avoid=())

    def address(self) -> str:
        return "127.0.0.1"

    def shortage(self) -> str | None:
        return "0 CPU" if self._waiting else None

    def order(self, worker: int, order: Order) -> None:
        """Send an order; control orders have a line of their own."""
        if self.stopped or worker not in self.ranks:
            self.violate(f"{type(order).__name__} went to worker {worker}, which is not in the group")
        self.note(f"to worker {worker}", order)
        self.trains |= isinstance(order, Go)
        if isinstance(order, Abort | Join):
            generation = order.generation if isinstance(order, Abort) else order.membership.generation
            if generation < self._generations[worker]:
                self.violate(f"generation {generation} was told to worker {worker} after {self._generations[worker]}")
            self._generations[worker] = generation
        rank, line = self.ranks[worker], "control" if acts_at_once(order) else "orders"
        self._send(worker, line, lambda: rank.happen(lambda: rank.control(order)))

    def add(self, worker: int, *, avoid: Collection[str] = (), gives_way: bool = False) -> None:
        self.note("driver", f"add worker {worker} away from {sorted(avoid)}")
        self.size += 1
        if len(self.ranks) < self.config.room:
            self._bring_up(worker, avoid)
        else:
            self._wait_for_room(worker)

    def kill(self, worker: int) -> None:
        if worker in self._waiting:
            self._waiting.remove(worker)
        else:
            if worker not in self.ranks:
                self.violate(f"worker {worker} was ended, which is not in the group")
            rank = self.ranks.pop(worker)
            self.note("driver", f"end worker {worker}")
            self._ended.add(worker)
            if rank.alive:
                self._die(rank)
            self.dead.append(rank)
            if self._waiting:
                self._bring_up(self._waiting.pop(0), ())
        self.size -= 1

    def stacks(self, workers: Collection[int]) -> dict[int, str]:
        return dict.fromkeys(workers, "stacks")

    def draining(self) -> Mapping[str, float]:
        return {node: max(0.0, until - self.clock.now) for node, until in self.drains.items()}

    def interrupt(self) -> None:
        self._inbox.append(Interrupt())

    def tell(self, came: Incoming) -> None:
        self._inbox.append(came)

    def stop(self, *, grace: float) -> list[str]:
        """End all."""
        self.note("driver", f"stop the group, {grace:g} s grace")
        if grace:
            for worker in list(self.ranks):
                self.order(worker, Leave())
            until = self.clock.now + grace
            while any(rank.alive and not rank.ended for rank in self.ranks.values()) and self._happenings[0][0] < until:
                self._let_happen(self._happenings[0][0])
        for rank in self.ranks.values():
            if rank.alive:
                self._die(rank)
        self._happenings.clear()
        self.stopped = True
        return []

    # ---------------------------------------------------------------- lines
    def carry(self, rank: Life, message: Message) -> None:
        """A word of a rank is on its way."""
        if not isinstance(message, Pulse):
            self.note(f"worker {rank.worker}", message)
        parcel: list[Message | None] = [message]
        self._flying.setdefault(rank.worker, []).append(parcel)
        self._send(rank.worker, "words", lambda: self._deliver(rank.worker, parcel))

    def _send(self, worker: int, line: str, what: Callable[[], None]) -> None:
        at = max(self._free.get((worker, line), 0.0), self.clock.now + self.jitter() * self._slow[worker])
        self._free[worker, line] = at
        self.later(at - self.clock.now, what)

    def _deliver(self, worker: int, parcel: list[Message | None]) -> None:
        self._flying[worker].remove(parcel)
        message = parcel[0]
        heard = worker not in self.unheard and worker not in self._ended
        if message is not None and (heard or self.config.leaks):
            self._inbox.append(message)

    def network(self, membership: Membership) -> Network:
        """The links of a generation, made by its first member."""
        generation = membership.generation
        if generation not in self._networks:
            self._networks[generation] = Network(self, generation, membership.world_size)
        return self._networks[generation]

    # ---------------------------------------------------------------- lives
    def _bring_up(self, worker: int, avoid: Collection[str]) -> None:
        nodes = [f"node-{number}" for number in range(self.config.nodes)]
        allowed = [node for node in nodes if node not in avoid and node not in self.drains]
        if not allowed:
            self._wait_for_room(worker)
            return
        node = allowed[worker % len(allowed)]
        rank = self.ranks[worker] = Rank(self, worker, node)
        self.later(self.rng.random() * BEAT, lambda: self._beat(rank))

    def _wait_for_room(self, worker: int) -> None:
        self.starved = True
        self._waiting.append(worker)

    def _beat(self, rank: Rank) -> None:
        if rank.alive and not rank.ended:
            if not rank.silent:
                rank.pulse()
            self.later(BEAT, lambda: self._beat(rank))

    def has_left(self, rank: Life) -> None:
        """It came to its end by itself."""
        if not self.stopped and rank.network is not None:
            rank.leave_group()

    def _die(self, rank: Rank) -> None:
        rank.alive = False
        if rank.network is not None:
            rank.network.lose(rank.membership.rank)
        flying = self._flying.get(rank.worker, [])
        for parcel in flying[self.rng.randint(0, len(flying)) :]:  # what had not left the process
            parcel[0] = None

    def lose(self, rank: Rank) -> None:
        """A process is gone, and its stream breaks."""
        if rank.alive and not rank.ended:
            self._die(rank)
            self.break_stream(rank, "its process is gone (exit code -9)")

    def break_stream(self, rank: Rank, cause: str) -> None:
        def tell() -> None:
            if rank.worker not in self._ended:
                self._inbox.append(Lost(worker=rank.worker, cause=cause))

        self.later(self.jitter(), lambda: self._send(rank.worker, "words", tell))
