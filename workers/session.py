"""One rank's life, without Ray: build, join, train, wait at gates, answer orders, leave.

The training thread calls `run()` and stays in it; all orders that touch the program are served there, so collectives
keep one order on every rank. Control orders act at once, on whatever thread brings them. Called by `actor.py` on a
cluster, and by the driver itself for `workers: 0`.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from workers import process_group
from workers.buckets import Layout
from workers.building import build_program, fingerprint_of, make_worker, metrics_of, state_bytes
from workers.cut import Cut
from workers.engine import Engine
from workers.errors import FaultTold, LeaveNow, Retreat
from workers.events import Event
from workers.faults import fault_kind
from workers.gates import Shipped, attach_gates
from workers.mailbox import Mailbox, Outbox
from workers.memory import kernel_kills
from workers.messages import (
    Answer,
    Arrived,
    Built,
    Finished,
    Hello,
    Joined,
    Mended,
    Observed,
    SnapshotTaken,
    Stopped,
)  # fmt: skip
from workers.orders import (
    Abort,
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
from workers.parcels import CUT, TRAINER, GateKey
from workers.rank import Place
from workers.rewinding import Rewinder
from workers.rng import seed_rng
from workers.surviving import Surviving
from workers.versions import installed

__all__ = ["Session"]


class Session(Surviving):
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
        super().__init__(worker_id=worker_id, place=place, outbox=outbox, mailbox=mailbox)
        self._cut = Cut(self._arrive_at_cut, mailbox.idle)
        self._shipped: Shipped
        self._rewinder: Rewinder | None = None  # from the first join on, unless the driver is in this process
        self._build_order: Build | None = None
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
        """Serve orders until `Leave`; after a user's exception nothing else is served."""
        self.send(Hello, place=self.place, versions=installed("rankfire", "torch"))
        try:
            while True:
                alarmed = False
                try:
                    self.serve(self.mailbox.get())
                except Retreat:
                    alarmed = True
                if alarmed:  # only now: the exception and its frames, which hold the old group's models, are gone
                    self._stand_clear()
        except LeaveNow:
            pass
        finally:
            self.outbox.close()

    def serve(self, order: Order) -> None:
        """Carry out one order; what the program raises is reported as `Fault`.

        A user's exception ends this rank's work. After a lost peer, it waits for the next generation.
        """
        with contextlib.suppress(FaultTold):
            self._carry_out(order)

    # ---------------------------------------------------------------- any thread
    def control(self, order: Order) -> bool:
        """Act at once on an order that can't wait for the training thread; False if it is none of these."""
        if isinstance(order, ProposeCut):
            self.send(Answer, order=order.order, value=self._cut.propose(self.trainer))
        elif isinstance(order, CutAt):
            self._cut.settle(order.iteration)
        elif isinstance(order, Abort):
            self._abort(order.generation)
        else:
            return False
        return True

    # ---------------------------------------------------------------- orders, in the order of a life
    def _build(self, order: Build, *, formed: bool = False) -> None:
        self._note("building the program")
        began = time.monotonic()
        self.membership = order.membership
        self._build_order = order
        self._rewinder, self._shipped, self._saver = None, Shipped(), None
        self._worker = make_worker(order, lent=self.place.gpus, formed=formed)
        self._worker.told = self._tell_mended
        program = build_program(order, self._worker)
        for engine in program.engines.values():
            engine.foreign, engine.driven = lambda error: fault_kind(error) == "communication", True
        attach_gates(program, order.gates, order.watches, arrive=self._arrive, observe=self._observe)
        self._shipped.attach(program, order.handlers, order.membership, built=True)
        self.send(
            Built,
            device=str(self._worker.device),
            seconds=time.monotonic() - began,
            engines=tuple(program.engines),
            state_bytes=state_bytes(program),
            metrics=metrics_of(program),
            data=fingerprint_of(program),
            threads=torch.get_num_threads(),
            shards=self._worker.models.shards,
        )

    def _join(self, order: Join) -> None:
        assert self._build_order is not None, "Join came before Build"
        rank, built = order.membership.rank, self._build_order.membership.rank
        if order.rewind is not None and rank in order.rewind.newcomers and rank != built and self.worker.rank_read:
            self._build(replace(self._build_order, membership=order.membership))  # its program was another rank's
        self._note("joining the process group")
        self.membership = self.worker.membership = order.membership
        self._wanted = order.membership.generation
        self._meet(order, self._build_order)
        self._shipped.attach(self.program, self._build_order.handlers, order.membership)
        if order.store is not None and self._rewinder is None:
            told = partial(self.send, SnapshotTaken)
            every = None if self.worker.models.shards else self._build_order.snapshots  # nobody else has a rank's part
            self._rewinder = Rewinder(self.worker, self.program, every, self._reports, told)
        afresh = order.rewind is None and (order.load is None or order.load.entries is not None)
        layouts = self._take_up(order)
        if order.membership.world_size > 1:
            self.worker.models.wrap(first=afresh, layouts=layouts)
        if afresh:
            seed_rng(self.worker.seed, order.membership.rank)
        if self._rewinder is not None:
            if order.rewind is None:
                self._rewinder.at_begin(None if order.load is None else order.load.at)
            self.trainer.announced = self._rewinder.announced  # a cut must not be agreed on for where it was before
        self._out, self.error = False, None
        self.send(Joined, samples=self.worker.samples)

    def _meet(self, order: Join, build: Build) -> None:
        """Form the process group; a program whose models are sharded is built in it, and again in each other one."""
        models, several = self.worker.models, order.membership.world_size > 1
        anew = models.shards and (several or models.formed or self.worker.program is None)
        if anew:
            self._forget_program()
        if order.store is not None:
            process_group.form(
                order.membership,
                order.store,
                self.worker.device,
                self.place.address,
                timeout=order.timeout,
                forming=order.forming,
            )
        if anew:
            self._build(replace(build, membership=order.membership), formed=several)

    def _take_up(self, order: Join) -> list[Layout | None] | None:
        """The state with which all go on; gives the layouts with which models are wrapped."""
        if order.rewind is not None:
            assert self._rewinder is not None, "a rank without others has no snapshot"
            self._note(f"going back to {order.rewind.label}")
            return self._rewinder.rewind(order.rewind)
        if order.load is not None:
            from workers.checkpointing import restore  # a second of imports that most starts can spare

            self._note("loading the checkpoint")
            return restore(self.worker, self.program, order.load)
        return None

    def _go(self, order: Go) -> None:
        self._note("training")
        if self._rewinder is not None:
            self._rewinder.go_on(partial(self._wait_at, self.trainer))
        if order.cut is not None:
            self._cut.arm(self.trainer, order.cut)
        state = self.trainer.run(
            self.program.data.get(TRAINER),
            max_epochs=order.max_epochs,
            max_iters=order.max_iters,
            epoch_length=order.epoch_length,
        )
        self._note("finished")
        self.send(Finished, iteration=state.iteration, epoch=state.epoch, completed=self.trainer.completed)

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
        if not isinstance(order, Leave) and (self._over or not self._timely(order)):
            return
        try:
            self._orders[type(order)](order)
        except LeaveNow:
            raise
        except BaseException as error:  # KeyboardInterrupt, SystemExit …: a rank that just goes would not be missed
            self._fail(error)
            raise FaultTold from error

    # ---------------------------------------------------------------- when a peer is lost
    def _stand_clear(self) -> None:
        """Let go of the group, and tell what snapshots there are."""
        self._note("waiting for the next generation")
        if self._knife is not None:
            self._knife.cancel()
        self.mailbox.interrupt(None)
        if self._worker is not None:
            self._worker.models.unwrap()
        process_group.leave()
        self._cut = Cut(self._arrive_at_cut)
        for engine in self._engines():
            engine.set_boundary(None)
        self._wanted, self._out = self._aborted, True
        self.membership = replace(self.membership, generation=self._aborted)
        trainer = self._engine()
        held = () if self._rewinder is None else self._rewinder.held
        iteration = 0 if trainer is None else trainer.announced
        self.send(Stopped, held=held, iteration=iteration, kills=kernel_kills())

    def _forget_program(self) -> None:
        """Let go of the program before the next process group is formed: its models refer to the last one."""
        self.worker.models.forget()
        self.worker.program, self.error = None, None
        self._rewinder, self._saver, self._shipped = None, None, Shipped()
        gc.collect()

    # ---------------------------------------------------------------- gates
    def _arrive(self, name: str, engine: Engine, event: Event, count: int) -> None:
        self._come_to(GateKey(engine=name, event=event.key, count=count, visit=self._visits.get(name, 0)), engine)

    def _arrive_at_cut(self, engine: Engine, iteration: int) -> None:
        self._come_to(GateKey(engine=TRAINER, event=CUT, count=iteration), engine)

    def _tell_mended(self, text: str) -> None:
        trainer = self._engine()
        self.send(Mended, text=text, iteration=0 if trainer is None else trainer.state.iteration)

    def _observe(self, name: str, engine: Engine, event: Event, count: int) -> None:
        key = GateKey(engine=name, event=event.key, count=count, visit=self._visits.get(name, 0))
        self.send(Observed, gate=key, **self._reports.of(engine, self.worker, on_cpu=True))

    def _come_to(self, key: GateKey, engine: Engine) -> None:
        """A gate: first of all a snapshot, so that nobody goes back beyond a gate that was passed."""
        if self._rewinder is not None:
            self._rewinder.at_gate(key)
        self._wait_at(engine, key)

    def _wait_at(self, engine: Engine, key: GateKey, after: int = 0) -> None:
        before = self._note(f"arriving at {key}")
        self.send(Arrived, gate=key, after=after, **self._reports.of(engine, self.worker))
        self._note(f"waiting at {key}")  # only now: what it brings may hang on a device
        while not isinstance(order := self.mailbox.get(), Release):
            self._carry_out(order)
        assert order.gate == key, f"released from {order.gate} while waiting at {key}"
        self._note(before)
        self.worker.waited()
        if self._rewinder is not None and order.order > after:
            self._rewinder.at_gate(key, order=order.order)
        self._reports.take_back(engine, order.metrics)
        if order.then == "terminate":
            self.trainer.terminate()
        elif order.then == "interrupt":
            self.trainer.interrupt()
