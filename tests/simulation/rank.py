"""A simulated rank: builds, joins, trains, serves, goes back, as `workers/session.py` and `workers/rewinding.py` do."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from typing import ClassVar

import cloudpickle
from torch.distributed.checkpoint.planner import SavePlan

from tests.simulation.life import LeaveNowError, Steps
from tests.simulation.model import State, fail, mix
from tests.simulation.network import LostPeerError, Network
from tests.simulation.trainer import Trainer
from workers.messages import Answer, Built, Finished, Joined, Saved
from workers.orders import Build, Call, Evaluate, FreezeSave, Go, Join, Leave, Order, PlanSave
from workers.parcels import CUT, Failure, LoadPoint, Number, Planned, Receipt, Rewind, SnapshotLabel
from workers.rewinding import BEGIN
from workers.shards import Written

__all__ = ["Rank", "rank_file"]

FORMING = 15.0  # seconds for the members of the first generation to meet
REFORMING = 2.0  # the same for later ones


class Rank(Trainer):
    """One rank."""

    orders: ClassVar[dict[type[Order], str]] = {
        Build: "_build",
        Join: "_join",
        Go: "_go",
        Evaluate: "_evaluate",
        Call: "_call",
        PlanSave: "_plan_save",
        FreezeSave: "_freeze_save",
        Leave: "_leave",
    }

    @property
    def rank(self) -> int:
        return self.membership.rank

    # ---------------------------------------------------------------- orders, in the order of a life
    def _build(self, order: Build) -> Steps:
        self.note("building the program")
        self.membership = order.membership
        yield self.busy("build", 0.05, 0.3)
        self.gates, self.watches = order.gates, order.watches
        self.state = State.fresh(order.membership.rank)
        self.ring, self.held, self.at, self.rewinds, self.announced = [], (), None, False, 0
        self._built_as = order
        self.snapshots = order.snapshots is not None
        self.send(
            Built, device="cpu", seconds=0.1, engines=("trainer", "evaluator"), state_bytes={}, metrics={}, data={}
        )

    def _join(self, order: Join) -> Steps:
        rank, rewind = order.membership.rank, order.rewind
        moved = rewind is not None and rank in rewind.newcomers and rank != self._built_as.membership.rank
        if moved and self.world.config.rank_read:
            yield from self._build(replace(self._built_as, membership=order.membership))
        self.note("joining the process group")
        self.membership = order.membership
        self._wanted = order.membership.generation
        if order.store is not None:
            yield from self._form(order)
        self.rewinds |= order.store is not None
        if rewind is not None:
            self.note(f"going back to {rewind.label}")
            yield from self._rewind(rewind)
        elif order.load is not None:
            self.note("loading the checkpoint")
            yield from self._load(order.load)
        yield self.busy("wrap", 0.0, 0.02)
        yield from self.join_in(("wrap",), None)
        if rewind is None and order.load is None:
            self.state = State.fresh(rank)
            self.world.oracle.seen(self)
        if self.rewinds and rewind is None:
            self.requests = dict.fromkeys(self.requests, False)
            self.at = None if order.load is None else order.load.at
            yield from self.take(self.at or SnapshotLabel(iteration=self.state.iteration, gate=BEGIN))
        at_cut = self.at is not None and self.at.gate is not None and self.at.gate.event == CUT
        self.announced = self.state.iteration + at_cut
        self._out = False
        self.send(Joined)

    def _form(self, order: Join) -> Steps:
        """The members meet at the store, and connect."""
        membership = order.membership
        self.network = network = self.world.network(membership)
        limit = FORMING if membership.generation == 0 else REFORMING
        self.world.later(limit, lambda: self.happen(lambda: self._give_up_forming(network)))
        self._forming = True
        try:
            yield self.busy("form", 0.0, 0.02)
            yield from self.join_in(("form",), None)
        except LostPeerError:
            self.leave_group()
            raise
        finally:
            self._forming = False

    def _give_up_forming(self, network: Network) -> None:
        if self._forming and self.network is network:
            self.sever()

    def _rewind(self, rewind: Rewind) -> Steps:
        pair = sorted({rewind.donor, *rewind.newcomers})
        if self.rank in rewind.newcomers:
            yield self.busy("receive", 0.0, 0.02)
            given = yield from self.join_in(("give", str(rewind.label)), None, pair)
            donors, requests = given[rewind.donor].copy(), dict.fromkeys(self.requests, False)
            if rewind.own is None:
                state = donors.as_stranger(self.rank)
            else:
                requests, state = pickle.loads(rewind.own)
            self.put(rewind.label, replace(state, model=donors.model), requests)
        elif self.rank == rewind.donor and len(pair) > 1:
            yield self.busy("give", 0.0, 0.02)
            yield from self.join_in(("give", str(rewind.label)), self.snapshot(rewind.label).state, pair)
        yield self.busy("restore", 0.0, 0.02)
        self.restore(rewind.label)
        self.world.oracle.seen(self)

    def _load(self, load: LoadPoint) -> Steps:
        yield self.busy("load", 0.0, 0.05)
        storage = self.world.disk.at(load.url)
        if self.rank < load.world_size:
            self.state = State.from_json(storage.read(rank_file(self.rank)))
        else:
            self.state = State.from_json(storage.read(rank_file(0))).as_stranger(self.rank)
        self.state.loaded = True
        self.world.oracle.seen(self)

    def _go(self, order: Go) -> Steps:
        self.note("training")
        yield from self.train(order)
        self.note("finished")
        self.world.oracle.finished[self.rank] = replace(self.state.copy(), loaded=True)
        self.send(Finished, iteration=self.state.iteration, epoch=self.state.epoch)
        yield self.busy("finish", 0.0, 0.02)

    def _leave(self, order: Leave) -> Steps:
        self.note("leaving")
        yield self.busy("leave", 0.0, 0.02)
        self.leave_group()
        raise LeaveNowError

    # ---------------------------------------------------------------- orders at a gate
    def _evaluate(self, order: Evaluate) -> Steps:
        before = self.note(f"evaluating with {order.engine}")
        visit = self.visits[order.engine] = order.order
        yield from self.join_in(("evaluate",), None)
        for number in range(1, self.world.config.evaluation + 1):
            self.boundary()
            self.moves += 1
            yield self.busy("evaluate", 0.005, 0.02)
            self.state.own = mix(self.state.own, "evaluate", number)
            yield from self.fire(order.engine, "ITERATION_COMPLETED", number, visit)
        yield from self.fire(order.engine, "EPOCH_COMPLETED", 1, visit)
        self.world.oracle.seen(self)
        self.note(before)
        value = mix(self.state.model, self.state.own) % 1000 / 10
        self.send(Answer, order=order.order, value={"score": Number(value=value)})

    def _call(self, order: Call) -> Steps:
        before = self.note("calling")
        yield self.busy("call", 0.0, 0.02)
        function, args, kwargs = cloudpickle.loads(order.pickled)
        value, failure = None, None
        try:
            if self.call_fails:
                function, self.call_fails = fail, False
            value = cloudpickle.dumps(function(self, *args, **kwargs))
        except ValueError as error:
            failure = Failure(type_name="ValueError", text=str(error), traceback="")
        else:
            self.world.oracle.seen(self)
        yield self.busy("called", 0.0, 0.02)
        self.note(before)
        self.send(Answer, order=order.order, value=value, failure=failure)

    def _plan_save(self, order: PlanSave) -> Steps:
        before = self.note("planning a checkpoint")
        yield self.busy("plan", 0.0, 0.02)
        planned = Planned(plan=SavePlan([]), spread=(), state={"model": 8}, cursor={}, data={})
        self.send(Answer, order=order.order, value=planned)
        self.note(before)

    def _freeze_save(self, order: FreezeSave) -> Steps:
        before = self.note("copying the state for a checkpoint")
        if self.writing and self.held_by in order.given_up:
            failure = Failure(type_name="TimeoutError", text="the storage still holds on to a file", traceback="")
            self.send(Answer, order=order.order)
            self.send(Saved, url=order.url, failure=failure)
            self.note(before)
            return
        yield "writer"
        content = self.state.to_json()
        yield self.busy("freeze", 0.0, 0.02)
        self.writing = True
        self.world.later(self.world.between(0.0, 0.2), lambda: self.happen(lambda: self._write(order.url, content)))
        self.send(Answer, order=order.order)
        self.note(before)

    def _write(self, url: str, content: bytes) -> None:
        """What the writing thread does, in two steps: between them the file is there, and nobody knows."""
        self.world.strike(self, "write")
        if self.storage_hangs:
            self.storage_hangs, self.held_by = False, url
            return
        if self.silent:
            self.happen(lambda: self._write(url, content))
        if self.silent or not self.alive:
            return
        written, failure = None, None
        try:
            path = rank_file(self.rank)
            with self.world.disk.at(url).create(path) as file:
                file.write(content)
            receipt = Receipt(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())
            written = Written(receipts=(receipt,), results=[])
        except OSError as error:
            failure = Failure(type_name="OSError", text=str(error), traceback="")

        def tell() -> None:
            self.world.strike(self, "written")
            if self.silent:
                self.happen(tell)
            elif self.alive:
                self.writing = False
                self.send(Saved, url=url, written=written, failure=failure)
                self.poke()

        self.world.later(self.world.jitter(), lambda: self.happen(tell))


def rank_file(rank: int) -> str:
    return f"ranks/rank-{rank:04d}.json"
