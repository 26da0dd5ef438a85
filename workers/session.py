"""One rank's life, without Ray: build, join, train, wait at gates, answer orders, leave.

The training thread calls `run()` and stays in it; all orders that touch the program are served there, so collectives
keep one order on every rank. Control orders act at once, on whatever thread brings them. Called by `actor.py` on a
cluster, and by the driver itself for `workers: 0`.
"""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cloudpickle

from workers import process_group
from workers.building import build_program, make_worker, metrics_of, state_bytes
from workers.cut import Cut
from workers.data.loader import GlobalLoader
from workers.dispatch import RemovableEventHandle
from workers.engine import Engine
from workers.errors import ProgramError
from workers.events import Event
from workers.faults import fault_kind
from workers.gates import attach_gates, attach_shipped
from workers.mailbox import Mailbox, Outbox
from workers.messages import Answer, Arrived, Built, Fault, Finished, Hello, Joined, Message, Observed, Pulse
from workers.orders import (
    Build,
    Call,
    CutAt,
    Evaluate,
    Go,
    Join,
    Leave,
    Order,
    PlanSave,
    ProposeCut,
    Release,
    WriteSave,
)
from workers.parcels import CUT, TRAINER, Failure, GateKey
from workers.program import Program
from workers.rank import Membership, Place
from workers.reports import Reports
from workers.rng import seed_rng
from workers.worker import Worker

if TYPE_CHECKING:
    from workers.shards import FrozenState

__all__ = ["LeaveNow", "Session"]


class LeaveNow(BaseException):
    """Unwinds the training thread from inside a gate; no handler and no `except Exception` of a user stops it."""


class Session:
    """One rank.

    Args:
        worker_id: id of this worker, unique in the run; its rank may change, this does not.
        place: where it runs.
        outbox: where its messages go.
        mailbox: where its orders come from.

    Example:
        >>> session = Session(worker_id=0, place=place, outbox=Outbox(), mailbox=Mailbox())  # doctest: +SKIP
        >>> session.run()  # doctest: +SKIP
    """

    def __init__(self, *, worker_id: int, place: Place, outbox: Outbox, mailbox: Mailbox) -> None:
        self.worker_id = worker_id
        self.place = place
        self.outbox = outbox
        self.mailbox = mailbox
        self.membership = Membership(generation=0, rank=worker_id, world_size=1)
        self.phase = "starting"
        self.error: BaseException | None = None  # what ended this rank, for a driver in the same process
        self._sequence = itertools.count()
        self._reports = Reports()
        self._cut = Cut(self._arrive_at_cut, mailbox.idle)
        self._shipped: list[RemovableEventHandle] = []
        self._visits: dict[str, int] = {}
        self._frozen: FrozenState | None = None  # between PlanSave and WriteSave
        self._build_order: Build | None = None
        self._worker: Worker | None = None
        self._orders: dict[type[Order], Callable[[Any], None]] = {
            Build: self._build,
            Join: self._join,
            Go: self._go,
            Evaluate: self._evaluate,
            Call: self._call,
            PlanSave: self._plan_save,
            WriteSave: self._write_save,
            Leave: self._leave,
        }

    # ---------------------------------------------------------------- the training thread
    def run(self) -> None:
        """Serve orders until `Leave`; after a `Fault` nothing else is served."""
        self.send(Hello, place=self.place)
        try:
            while True:
                self.serve(self.mailbox.get())
        except LeaveNow:
            pass
        finally:
            self.outbox.close()

    def serve(self, order: Order) -> None:
        """Carry out one order; what the program raises is reported as `Fault`, and ends this rank's work."""
        if self.error is not None and not isinstance(order, Leave):
            return
        try:
            self._orders[type(order)](order)
        except (Exception, SystemExit) as error:  # sys.exit() too: a rank that just goes would be taken for a crash
            self.error = error
            self.send(
                Fault,
                kind=fault_kind(error),
                phase=self._note("failed"),
                iteration=self._reports.progress(self._engine(), self._worker)["iteration"],
                failure=Failure.of(error),
            )

    def send(self, message: type[Message], /, **fields: Any) -> None:
        """Stamp a message and put it into the outbox."""
        self.outbox.put(message(**self._stamp(), **fields))

    # ---------------------------------------------------------------- any thread
    def control(self, order: Order) -> bool:
        """Act at once on an order that can't wait for the training thread; False if it is none of these."""
        if isinstance(order, ProposeCut):
            self.send(Answer, order=order.order, value=self._cut.propose(self.trainer))
        elif isinstance(order, CutAt):
            self._cut.settle(order.iteration)
        else:
            return False
        return True

    def pulse(self) -> Pulse:
        """What this rank is doing right now."""
        progress = self._reports.progress(self._engine(), self._worker)
        return Pulse(**self._stamp(), phase=self.phase, drops=self.outbox.drops, **progress)

    # ---------------------------------------------------------------- what there is
    @property
    def built(self) -> bool:
        """Whether there is a program."""
        return self._worker is not None and self._worker.program is not None

    @property
    def worker(self) -> Worker:
        """This rank's worker; only after `Build`."""
        assert self._worker is not None, "an order came before Build"
        return self._worker

    @property
    def program(self) -> Program:
        """This rank's program; only after `Build`."""
        assert self.worker.program is not None, "an order came before build() returned"
        return self.worker.program

    @property
    def trainer(self) -> Engine:
        """The engine that trains."""
        return self.program.engines[TRAINER]

    # ---------------------------------------------------------------- orders, in the order of a life
    def _build(self, order: Build) -> None:
        self._note("building the program")
        began = time.monotonic()
        self.membership = order.membership
        self._build_order = order
        self._worker = make_worker(order)
        program = build_program(order, self._worker)
        attach_gates(program, order.gates, order.watches, arrive=self._arrive, observe=self._observe)
        self.send(
            Built,
            device=str(self._worker.device),
            seconds=time.monotonic() - began,
            engines=tuple(program.engines),
            state_bytes=state_bytes(program),
            metrics=metrics_of(program),
        )

    def _join(self, order: Join) -> None:
        self._note("joining the process group")
        self.membership = self.worker.membership = order.membership
        if order.store is not None:
            process_group.form(
                order.membership, order.store, self.worker.device, self.place.address, timeout=order.timeout
            )
        if order.load is not None:
            from workers.checkpointing import restore  # a second of imports that most starts can spare

            self._note("loading the checkpoint")
            restore(self.worker, self.program, order.load)
        if order.membership.world_size > 1:
            self.worker.models.wrap(first=order.load is None)
        if order.load is None:
            seed_rng(self.worker.seed, order.membership.rank)
        for handle in self._shipped:
            handle.remove()
        assert self._build_order is not None, "Join came before Build"
        self._shipped = attach_shipped(self.program, self._build_order.handlers, order.membership)
        self.send(Joined)

    def _go(self, order: Go) -> None:
        self._note("training")
        state = self.trainer.run(
            self.program.data.get(TRAINER),
            max_epochs=order.max_epochs,
            max_iters=order.max_iters,
            epoch_length=order.epoch_length,
        )
        self._note("finished")
        self.send(Finished, iteration=state.iteration, epoch=state.epoch)

    def _evaluate(self, order: Evaluate) -> None:
        engine = self.program.engine(order.engine)
        data = self.program.data.get(order.engine)
        if data is None:
            raise ProgramError(
                f"evaluate({order.engine!r}): expected data for it, received none; give Program data[{order.engine!r}]"
            )
        before = self._note(f"evaluating with {order.engine}")
        self._visits[order.engine] = order.order
        with self.worker.set_aside():
            if isinstance(data, GlobalLoader):
                view = data.evaluation()
                engine.run(view, max_epochs=1, epoch_length=len(view), resume_from_iteration=0)
            else:
                engine.run(data, max_epochs=1, resume_from_iteration=0)
        self._note(before)
        self.send(Answer, order=order.order, value=self._reports.packs(engine))

    def _call(self, order: Call) -> None:
        function, args, kwargs = pickle.loads(order.pickled)
        before = self._note(f"calling {getattr(function, '__qualname__', function)}")
        try:
            value, failure = cloudpickle.dumps(function(self.worker, *args, **kwargs)), None
        except (Exception, SystemExit) as error:  # the caller on the driver gets it, as from any function
            value, failure = None, Failure.of(error)
        self._note(before)
        self.send(Answer, order=order.order, value=value, failure=failure)

    def _plan_save(self, order: PlanSave) -> None:
        from workers.checkpointing import freeze

        before = self._note("planning a checkpoint")
        self._frozen = freeze(self.worker, self.program)
        self.send(Answer, order=order.order, value=self._frozen.plan())
        self._note(before)

    def _write_save(self, order: WriteSave) -> None:
        assert self._frozen is not None, "WriteSave came before PlanSave"
        before = self._note("writing a checkpoint")
        frozen, self._frozen = self._frozen, None
        try:
            value, failure = frozen.write(order.folder, order.plan), None
        except OSError as error:  # a full or missing disk is no fault of the program: the driver decides
            value, failure = None, Failure.of(error)
        self.send(Answer, order=order.order, value=value, failure=failure)
        self._note(before)

    def _leave(self, order: Leave) -> None:
        self._note("leaving")
        if self._worker is not None:
            self._worker.models.unwrap()
        process_group.leave()
        raise LeaveNow

    # ---------------------------------------------------------------- gates
    def _arrive(self, name: str, engine: Engine, event: Event, count: int) -> None:
        self._wait_at(GateKey(engine=name, event=event.key, count=count, visit=self._visits.get(name, 0)), engine)

    def _arrive_at_cut(self, engine: Engine, iteration: int) -> None:
        self._wait_at(GateKey(engine=TRAINER, event=CUT, count=iteration), engine)

    def _observe(self, name: str, engine: Engine, event: Event, count: int) -> None:
        key = GateKey(engine=name, event=event.key, count=count, visit=self._visits.get(name, 0))
        self.send(Observed, gate=key, **self._reports.of(engine, self.worker, on_cpu=True))

    def _wait_at(self, key: GateKey, engine: Engine) -> None:
        before = self._note(f"waiting at {key}")
        self.send(Arrived, gate=key, **self._reports.of(engine, self.worker))
        while not isinstance(order := self.mailbox.get(), Release):
            self._orders[type(order)](order)
        assert order.gate == key, f"released from {order.gate} while waiting at {key}"
        self._note(before)
        self._reports.take_back(engine, order.metrics)
        if order.then == "terminate":
            self.trainer.terminate()
        elif order.then == "interrupt":
            self.trainer.interrupt()

    # ---------------------------------------------------------------- small
    def _stamp(self) -> dict[str, Any]:
        """What every message carries."""
        return {
            "generation": self.membership.generation,
            "worker": self.worker_id,
            "rank": self.membership.rank,
            "seq": next(self._sequence),
        }

    def _engine(self) -> Engine | None:
        """The trainer, once it is built."""
        return self.trainer if self.built else None

    def _note(self, phase: str) -> str:
        """Set the phase that pulses tell; returns the one before."""
        before, self.phase = self.phase, phase
        self._reports.moved()
        return before
