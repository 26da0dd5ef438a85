"""One rank's life, without Ray: build, join, train, wait at gates, answer orders, leave.

The training thread calls `run()` and stays in it; all orders that touch the program are served there, so collectives
keep one order on every rank. Control orders act at once, on whatever thread brings them. Called by `actor.py` on a
cluster, and by the driver itself for `workers: 0`.
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import cloudpickle

from workers import process_group
from workers.building import build_program, fingerprint_of, make_worker, metrics_of, state_bytes
from workers.cut import Cut
from workers.dispatch import RemovableEventHandle
from workers.engine import Engine
from workers.errors import FaultTold, LeaveNow
from workers.evaluating import evaluate
from workers.events import Event
from workers.faults import fault_kind
from workers.gates import attach_gates, attach_shipped
from workers.mailbox import Mailbox, Outbox
from workers.messages import Answer, Arrived, Built, Fault, Finished, Hello, Joined, Message, Observed, Pulse, Saved
from workers.orders import (
    Build,
    Call,
    CutAt,
    Evaluate,
    FreezeSave,
    Go,
    Join,
    Leave,
    Order,
    PlanSave,
    ProposeCut,
    Release,
)
from workers.parcels import CUT, TRAINER, Failure, GateKey
from workers.program import Program
from workers.rank import Membership, Place
from workers.reports import Reports
from workers.rng import seed_rng
from workers.worker import Worker

if TYPE_CHECKING:
    from workers.saving import RankSaver

__all__ = ["Session"]


class Session:
    """One rank.

    Args:
        worker_id: id of this worker, unique in the run; its rank may change, this does not.
        place: where it runs.
        outbox: where its messages go.
        mailbox: where its orders come from.

    Example:
        >>> Session(worker_id=0, place=place, outbox=Outbox(), mailbox=Mailbox()).run()  # doctest: +SKIP
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
        self._saver: RankSaver | None = None  # from the first save on
        self._build_order: Build | None = None
        self._worker: Worker | None = None
        self._orders: dict[type[Order], Callable[[Any], None]] = {
            Build: self._build,
            Join: self._join,
            Go: self._go,
            Evaluate: self._evaluate,
            Call: self._call,
            PlanSave: self._plan_save,
            FreezeSave: self._freeze_save,
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
        with contextlib.suppress(FaultTold):
            self._carry_out(order)

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
            data=fingerprint_of(program),
        )

    def _join(self, order: Join) -> None:
        self._note("joining the process group")
        self.membership = self.worker.membership = order.membership
        if order.store is not None:
            process_group.form(
                order.membership, order.store, self.worker.device, self.place.address, timeout=order.timeout
            )
        for handle in self._shipped:
            handle.remove()
        assert self._build_order is not None, "Join came before Build"
        self._shipped = attach_shipped(self.program, self._build_order.handlers, order.membership)
        layouts = None
        if order.load is not None:
            from workers.checkpointing import restore  # a second of imports that most starts can spare

            self._note("loading the checkpoint")
            layouts = restore(self.worker, self.program, order.load)
        afresh = order.load is None or order.load.entries is not None
        if order.membership.world_size > 1:
            self.worker.models.wrap(first=afresh, layouts=layouts)
        if afresh:
            seed_rng(self.worker.seed, order.membership.rank)
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
        before = self._note(f"evaluating with {order.engine}")
        self._visits[order.engine] = order.order
        engine = evaluate(self.worker, self.program, order.engine)
        self._note(before)
        self.send(Answer, order=order.order, value=self._reports.packs(engine))

    def _call(self, order: Call) -> None:
        function, args, kwargs = pickle.loads(order.pickled)
        before = self._note(f"calling {getattr(function, '__qualname__', function)}")
        try:
            value, failure = cloudpickle.dumps(function(self.worker, *args, **kwargs)), None
        except LeaveNow:
            raise
        except BaseException as error:  # the caller on the driver gets it, as from any function
            value, failure = None, Failure.of(error)
        self._note(before)
        self.send(Answer, order=order.order, value=value, failure=failure)

    def _plan_save(self, order: PlanSave) -> None:
        from workers.saving import RankSaver  # a second of imports, at the first save

        before = self._note("planning a checkpoint")
        if self._saver is None:
            self._saver = RankSaver(self.worker, self.program, partial(self.send, Saved))
        self.send(Answer, order=order.order, value=self._saver.plan())
        self._note(before)

    def _freeze_save(self, order: FreezeSave) -> None:
        assert self._saver is not None, "FreezeSave came before PlanSave"
        before = self._note("copying the state for a checkpoint")
        self._saver.freeze(order.plan, order.url)
        self.send(Answer, order=order.order)
        self._note(before)

    def _leave(self, order: Leave) -> None:
        self._note("leaving")
        if self._saver is not None:
            self._saver.end()
        if self._worker is not None:
            self._worker.models.unwrap()
        process_group.leave()
        raise LeaveNow

    def _carry_out(self, order: Order) -> None:
        """Like `serve`, in the middle of another order too: that one is unwound then."""
        if self.error is not None and not isinstance(order, Leave):
            return
        try:
            self._orders[type(order)](order)
        except LeaveNow:
            raise
        except BaseException as error:  # KeyboardInterrupt, SystemExit …: a rank that just goes would not be missed
            self._fail(error)
            raise FaultTold from error

    def _fail(self, error: BaseException) -> None:
        if self.error is not None:
            return  # raised by a program that stopped the first one's unwinding
        self.error = error
        self.send(
            Fault,
            kind=fault_kind(error),
            phase=self._note("failed"),
            iteration=self._reports.progress(self._engine(), self._worker)["iteration"],
            failure=Failure.of(error),
        )

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
            self._carry_out(order)
        assert order.gate == key, f"released from {order.gate} while waiting at {key}"
        self._note(before)
        self._reports.take_back(engine, order.metrics)
        if order.then == "terminate":
            self.trainer.terminate()
        elif order.then == "interrupt":
            self.trainer.interrupt()

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
        return self.trainer if self._worker is not None and self._worker.program is not None else None

    def _note(self, phase: str) -> str:
        """Set the phase that pulses tell; returns the one before."""
        before, self.phase = self.phase, phase
        self._reports.moved()
        return before
