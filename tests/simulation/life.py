"""What a simulated rank has in common with `workers/session.py` outside of training: orders in, words out, unwinding.

A rank is a generator: it yields wherever a real one may be for a while, and the world goes on with it, or throws into
it what a real one would have raised there. What the thread of control does happens between two of these steps.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tests.simulation.network import Call, LostPeerError, Network
from workers.messages import Answer, Fault, Hello, Message, Pulse, Stopped
from workers.orders import Abort, Build, CutAt, Join, Leave, Order, ProposeCut
from workers.parcels import Failure, SnapshotLabel
from workers.rank import Membership, Place

if TYPE_CHECKING:
    from tests.simulation.model import State
    from tests.simulation.world import World

__all__ = ["BEAT", "FaultToldError", "LeaveNowError", "Life", "Pause", "RetreatError", "Running", "Steps", "UserError"]

BEAT = 0.5  # seconds between two pulses
COLLECTIVE = 600.0  # seconds after which a collective fails
GRACE = 0.15  # seconds after `Abort` in which a rank may hear of the loss by itself


class LeaveNowError(BaseException):
    """As `workers.errors.LeaveNow`."""


class FaultToldError(LeaveNowError):
    """As `workers.errors.FaultTold`."""


class RetreatError(LeaveNowError):
    """As `workers.errors.Retreat`."""


class UserError(Exception):
    """What the user's program raises."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A rank is busy for so many seconds; the name is where faults strike."""

    name: str
    seconds: float


Waits = Literal["mail", "cut", "writer"]
Steps = Generator["Pause | Call | Waits", Any, Any]
Running = Callable[[Any], Steps]


class Life:
    """One rank, as far as it takes orders and lets go of a generation.

    Args:
        world: the simulation.
        worker: id of this worker.
        node: on which it is.
    """

    orders: ClassVar[dict[type[Order], str]] = {}

    def __init__(self, world: World, worker: int, node: str) -> None:
        self.world = world
        self.worker = worker
        self.place = Place(node=node, host=node, address="127.0.0.1", pid=1000 + worker)
        self.membership = Membership(generation=0, rank=worker, world_size=1)
        self.phase = "starting"
        self.alive = True
        self.ended = False  # it has left by itself
        self.silent = False  # stopped as by SIGSTOP
        self.stuck = False  # its training thread stands still, and nothing else
        self.mailbox: deque[Order] = deque()
        self.network: Network | None = None
        self.state: State
        self.announced = 0
        self.moves = 0
        self.held: tuple[SnapshotLabel, ...] = ()
        self.over = False
        self.cut_asked: int | None = None  # what was answered to `ProposeCut`; None: there is no cut
        self.cut_target: int | None = None
        self.cut_cancelled = False
        self._interrupted = False
        self._retreats = False  # what stands at the boundary of iterations
        self._wanted = 0
        self._out = False
        self.aborted = 0
        self._knife = 0  # the number of the last one, which alone cuts
        self._place_seen = (0, 0)
        self._moved_at = world.clock.now
        self._sequence = 0
        self._waits: Pause | Call | Waits = Pause("start", 0.0)
        self._poked = False
        self._kept: list[Callable[[], None]] = []  # what happened to it while it was silent
        self.writing = False
        self.storage_hangs = False  # it does not return from the next write
        self.held_by: str | None = None  # the staging folder of a share that the storage does not let go of
        self._life = self.run()
        self._waits = next(self._life)
        self.poke()

    # ---------------------------------------------------------------- the training thread
    def run(self) -> Steps:
        yield self.busy("start", 0.1, 0.5)
        self.send(Hello, place=self.place)
        try:
            while True:
                try:
                    yield from self._serve((yield "mail"))
                except RetreatError:
                    self._stand_clear()
                    yield self.busy("stand", 0.0, 0.02)
        except LeaveNowError:
            self.ended = True

    def _serve(self, order: Order) -> Steps:
        with contextlib.suppress(FaultToldError):
            yield from self.carry_out(order)

    def carry_out(self, order: Order) -> Steps:
        """Like `Session._carry_out`."""
        if not isinstance(order, Leave) and (self.over or not self._timely(order)):
            return
        try:
            yield from getattr(self, self.orders[type(order)])(order)
        except LeaveNowError:
            raise
        except (LostPeerError, UserError) as error:
            self._fail(error)
            raise FaultToldError from error

    def _timely(self, order: Order) -> bool:
        if isinstance(order, Build | Join):
            return order.membership.generation >= self._wanted
        return not self._out

    def _fail(self, error: Exception) -> None:
        if self.over:
            return
        kind: Literal["communication", "user"] = "communication" if isinstance(error, LostPeerError) else "user"
        if kind == "communication":
            self.sever()
            self._wanted, self._out = max(self._wanted, self.membership.generation + 1), True
            if self.aborted > self.membership.generation:
                raise RetreatError from error
        else:
            self.over = True
        failure = Failure(type_name=type(error).__name__, text=str(error), traceback="")
        self.send(Fault, kind=kind, phase=self.note("failed"), iteration=self.state_iteration, failure=failure)

    def join_in(self, tag: tuple[Any, ...], value: Any, members: list[int] | None = None) -> Steps:
        """A collective: what all its members brought, by rank."""
        network, rank = self.network, self.membership.rank
        if network is None:
            return {rank: value}
        call = network.enter(self, tag, value, members)  # type: ignore[arg-type]
        self.world.later(COLLECTIVE, lambda: self.happen(lambda: network.give_up(call)))
        try:
            return (yield call)
        finally:
            network.leave(call, rank)

    def busy(self, name: str, least: float, most: float) -> Pause:
        return Pause(name, self.world.between(least, most) * self.world.pace(self.worker))

    # ---------------------------------------------------------------- what the world does with it
    def poke(self) -> None:
        """Something has changed: go on if that was waited for."""
        if self.alive and not self._poked and not self.ended and self._ready():
            self._poked = True
            wait = self._waits.seconds if isinstance(self._waits, Pause) else self.world.jitter()
            self.world.later(wait, self._go_on)

    def happen(self, what: Callable[[], None]) -> None:
        """Something reaches this process: now, or when it is not stopped any more."""
        if self.silent:
            self._kept.append(what)
        elif self.alive:
            what()

    def wake(self) -> None:
        """As SIGCONT does."""
        self.silent = False
        kept, self._kept = self._kept, []
        for what in kept:
            self.happen(what)
        self.poke()

    def _go_on(self) -> None:
        self.happen(self._resume)

    def _resume(self) -> None:
        if self.stuck:
            return
        self._poked = False
        if not self._ready():  # what it waited for is gone again
            return
        waited = self._waits
        if isinstance(waited, Pause):
            thrown = self.world.strike(self, waited.name)
            if not self.alive or self.silent or self.stuck:
                return
            self._advance(thrown)
        elif isinstance(waited, Call):
            lost = self.membership.rank in waited.failed
            self._advance(
                LostPeerError(f"connection closed by peer in {waited.tag[0]}") if lost else None, waited.values
            )
        elif waited == "mail" and self._interrupted:
            self._advance(RetreatError())
        else:
            self._advance(None, self.mailbox.popleft() if waited == "mail" else None)

    def _advance(self, thrown: BaseException | None, value: Any = None) -> None:
        try:
            self._waits = self._life.throw(thrown) if thrown is not None else self._life.send(value)
        except StopIteration:
            self.ended = True
            self.world.has_left(self)
        else:
            self.poke()

    def _ready(self) -> bool:
        waits = self._waits
        if isinstance(waits, Call):
            return waits.ready(self.membership.rank)
        if waits == "mail":
            return self._interrupted or bool(self.mailbox)
        if waits == "cut":
            return self.cut_target is not None or self.cut_cancelled
        return not self.writing if waits == "writer" else True

    # ---------------------------------------------------------------- the control thread
    def control(self, order: Order) -> None:
        """Like `Session.control`, and the mailbox."""
        if isinstance(order, ProposeCut):
            self.cut_asked, self.cut_target, self.cut_cancelled = self.announced, None, False
            self.send(Answer, order=order.order, value=self.announced)
        elif isinstance(order, CutAt):
            self.cut_target = order.iteration
            self.poke()
        elif isinstance(order, Abort):
            self._abort(order.generation)
        else:
            self.mailbox.append(order)
            self.poke()

    def _abort(self, generation: int) -> None:
        if self.over or generation <= self.aborted:
            return
        self.aborted = generation
        self._interrupted = self.cut_cancelled = self._retreats = True
        self.poke()
        self._knife += 1
        number = self._knife

        def cut() -> None:
            if number == self._knife:
                self.sever()

        self.world.later(GRACE, lambda: self.happen(cut))

    def _stand_clear(self) -> None:
        self.note("waiting for the next generation")
        self._knife += 1
        self._interrupted = False
        self.leave_group()
        self.cut_asked, self.cut_target, self.cut_cancelled = None, None, False
        self._retreats = False
        self._wanted, self._out = self.aborted, True
        self.membership = replace(self.membership, generation=self.aborted)
        self.send(Stopped, held=self.held, iteration=self.announced)

    def boundary(self) -> None:
        """What an engine does between two iterations when another generation is coming."""
        if self._retreats:
            raise RetreatError

    def sever(self) -> None:
        if self.network is not None:
            self.network.lose(self.membership.rank, own=True)

    def leave_group(self) -> None:
        self.sever()
        self.network = None

    # ---------------------------------------------------------------- words
    def send(self, message: type[Message], /, **fields: Any) -> None:
        stamp = {"generation": self.membership.generation, "worker": self.worker, "rank": self.membership.rank}
        self._sequence += 1
        self.world.carry(self, message(**stamp, seq=self._sequence, **fields))

    def note(self, phase: str) -> str:
        before, self.phase = self.phase, phase
        self.moves += 1
        return before

    @property
    def state_iteration(self) -> int:
        return self.state.iteration if hasattr(self, "state") else 0

    def pulse(self) -> None:
        """Say that it lives."""
        place, now = (self.state_iteration, self.moves), self.world.clock.now
        if place != self._place_seen:
            self._place_seen, self._moved_at = place, now
        self.send(
            Pulse, phase=self.phase, iteration=self.state_iteration, epoch=0, moves=self.moves,
            idle=now - self._moved_at, busy=0.0, samples=0, drops=0, output={},
        )  # fmt: skip
