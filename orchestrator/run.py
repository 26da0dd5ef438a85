"""The driver's loop: the next thing that came → roll call → handlers → orders → release. One `Run` is one training.

It lives on the thread of the user: handlers run here, and an order given inside one pumps the same queue until its own
answers are there, so orders nest. What a fault means is decided in `verdict.py`; how ranks are reached, in the group.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import cloudpickle

from orchestrator.bus import EventBus
from orchestrator.errors import GateMismatchError, RankfireError, SpecError, StartError, name_ranks
from orchestrator.exchange import Group, Incoming, Interrupt, Lost
from orchestrator.journal import Journal
from orchestrator.lifecycle import Lifecycle, Phase
from orchestrator.reduce import reduce_numbers, reduce_packs
from orchestrator.rendezvous import Rendezvous
from orchestrator.roll_call import Observations, RollCall
from orchestrator.verdict import Facts, verdict
from workers import messages as m
from workers.events import Events
from workers.rank import Membership, Place, deal_ranks

__all__ = ["Limits", "Run"]

TRAINER = "trainer"
CUT = "CUT"
SETTLE = 0.3  # seconds in which other ranks may report what is the same fault, or its cause
Report = m.Arrived | m.Observed


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long to train, and how long to wait.

    Args:
        max_epochs, max_iters, epoch_length: as in `Engine.run`.
        start_timeout: seconds for placing, building and joining, each.
        collective_timeout: seconds after which a collective that does not end is an error.
        leave_timeout: seconds that the ranks have to leave by themselves.
    """

    max_epochs: int | None = None
    max_iters: int | None = None
    epoch_length: int | None = None
    start_timeout: float = 60.0
    collective_timeout: float = 600.0
    leave_timeout: float = 2.0


class Run:
    """One training, from the first process to the last.

    Args:
        group: the workers.
        buses: per engine, the driver's handlers.
        journal: the record.
        build: what every rank builds; its membership is filled in here.
        limits: how long.
        world_size: ranks that train.
    """

    def __init__(
        self,
        group: Group,
        buses: Mapping[str, EventBus],
        journal: Journal,
        *,
        build: Callable[[Membership], m.Build],
        limits: Limits,
        world_size: int,
    ) -> None:
        self.group = group
        self.buses = buses
        self.journal = journal
        self.life = Lifecycle()
        self.pulses: dict[int, m.Pulse] = {}
        self.on_pulse: Callable[[Mapping[int, m.Pulse]], None] | None = None
        self.on_interrupt: Callable[[], None] | None = None
        self.stop_reason: str | None = None
        self.interrupted = False
        self.samples = 0  # consumed by all ranks, as of the last report of all of them
        self._trained = 0.0  # seconds in which the ranks trained, without the present stretch
        self._since: float | None = None  # start of the present stretch
        self._build = build
        self._limits = limits
        self._world_size = world_size
        self._members: dict[int, Membership] = {}  # worker → its rank
        self._workers: list[int] = []  # rank → worker
        self._facts = Facts()
        self._verdict: RankfireError | None = None
        self._roll_call: RollCall[m.Arrived] = RollCall(world_size)
        self._observations: Observations[Report] = Observations(world_size)
        self._orders = itertools.count(1)
        self._answers: dict[int, dict[int, m.Answer]] = {}
        self._built: dict[int, m.Built] = {}
        self._joined: set[int] = set()
        self._finished: dict[int, m.Finished] = {}
        self._open: list[m.GateKey] = []  # gates whose handlers are running, outermost first
        self._cut: int | None = None  # order id of a cut that is being agreed on
        self._on: dict[type[Any], Callable[[Any], None]] = {
            m.Hello: self._hello, m.Built: self._on_built, m.Joined: self._on_joined, m.Arrived: self._arrived,
            m.Observed: self._observed, m.Answer: self._answer, m.Pulse: self._pulse, m.Fault: self._fault,
            m.Finished: self._on_finished, Lost: self._lost, Interrupt: self._interrupt,
        }  # fmt: skip

    # ---------------------------------------------------------------- a life
    def execute(self, load: m.LoadPoint | None) -> None:
        """Start, train, end; returns when the ranks have finished. The caller stops the group, however this ends."""
        self._place()
        with ExitStack() as stack:
            store = None
            if self.group.needs_store:
                store = stack.enter_context(Rendezvous(self.group.address()))
            self._build_all()
            self._join_all(store, load)
            self._train()
            self._leave()

    def _place(self) -> None:
        self.life.enter(Phase.PLACING)
        self.group.start()
        self._until(lambda: len(self._facts.places) == self._size(), "start")

    def _build_all(self) -> None:
        self.life.enter(Phase.BUILDING)
        self._members = deal_ranks(self._facts.places, generation=0)
        self._workers = sorted(self._members, key=lambda worker: self._members[worker].rank)
        self._facts.ranks = {worker: member.rank for worker, member in self._members.items()}
        for worker, member in self._members.items():
            self.group.order(worker, self._build(member))
        for bus in self.buses.values():
            bus.seal()
        self._until(lambda: len(self._built) == self._size(), "build")
        self._check_engines()

    def _join_all(self, store: tuple[str, int] | None, load: m.LoadPoint | None) -> None:
        self.life.enter(Phase.JOINING)
        timeout = self._limits.collective_timeout
        for worker in self._training():
            order = m.Join(membership=self._members[worker], store=store, timeout=timeout, load=load)
            self.group.order(worker, order)
        self._until(lambda: len(self._joined) == self._world_size, "join")
        for rank, worker in enumerate(self._training()):
            place = self._facts.places[worker]
            self.journal.write(
                "WORKER_JOINED",
                rank=rank, pid=place.pid, node=place.node, host=place.host, device=self._built[worker].device,
            )  # fmt: skip

    def _train(self) -> None:
        self.life.enter(Phase.RUNNING)
        go = m.Go(
            max_epochs=self._limits.max_epochs,
            max_iters=self._limits.max_iters,
            epoch_length=self._limits.epoch_length,
        )
        for worker in self._training():
            self.group.order(worker, go)
        self._since = time.monotonic()
        while len(self._finished) < self._world_size:
            self.pump()

    def _leave(self) -> None:
        self.life.enter(Phase.FINISHING)
        final = self._finished[0]
        state = self.buses[TRAINER].state
        state.iteration, state.epoch = final.iteration, final.epoch

    @property
    def training_seconds(self) -> float:
        """Seconds in which the ranks trained: those in which they waited at gates are left out."""
        return self._trained + (0.0 if self._since is None else time.monotonic() - self._since)

    # ---------------------------------------------------------------- the loop
    def pump(self, timeout: float = 1.0) -> None:
        """Handle the next thing that comes, waiting at most `timeout` seconds for it."""
        if self._verdict is not None:  # a handler swallowed it: the run has ended all the same
            raise self._verdict
        came = self.group.take(timeout)
        if came is not None:
            self._handle(came)

    def _handle(self, came: Incoming) -> None:
        self._on[type(came)](came)

    def _until(self, done: Callable[[], bool], step: str) -> None:
        """Pump until a step of the start is done."""
        began = time.monotonic()
        limit = self._limits.start_timeout
        while not done():
            self.pump(timeout=0.1)
            if time.monotonic() - began > limit:
                shortage = self.group.shortage() if step == "start" else None
                hint = f"; free at the moment: {shortage}" if shortage is not None else ""
                late = StartError.late(self._late(step), step=step, seconds=limit)
                raise StartError(f"{late}{hint}")

    def _late(self, step: str) -> list[int]:
        if step == "start":
            return [worker for worker in range(self._size()) if worker not in self._facts.places]
        done = self._built if step == "build" else self._joined
        return [self._members[worker].rank for worker in self._members if worker not in done]

    # ---------------------------------------------------------------- what comes
    def _hello(self, message: m.Hello) -> None:
        self._facts.places[message.worker] = message.place

    def _on_built(self, message: m.Built) -> None:
        self._built[message.worker] = message

    def _on_joined(self, message: m.Joined) -> None:
        self._joined.add(message.worker)

    def _pulse(self, message: m.Pulse) -> None:
        if message.worker in self._members:
            self.pulses[self._members[message.worker].rank] = message
            self._facts.phases[message.worker] = f"{message.phase}, iteration {message.iteration}"
            if self.on_pulse is not None:
                self.on_pulse(self.pulses)

    def _answer(self, message: m.Answer) -> None:
        self._answers.setdefault(message.order, {})[message.rank] = message
        if message.order == self._cut and len(self._answers[message.order]) == self._world_size:
            self._settle_cut()

    def _on_finished(self, message: m.Finished) -> None:
        self._finished[message.rank] = message
        self._check_gates()

    def _arrived(self, message: m.Arrived) -> None:
        self._roll_call.arrive(message.rank, message.gate, message)
        self._facts.phases[message.worker] = f"waiting at {message.gate}"
        self._check_gates()
        if self._roll_call.full:
            key, reports = self._roll_call.take()
            self._at_gate(key, reports)

    def _check_gates(self) -> None:
        call = self._roll_call
        ended = [rank for rank in call.missing if rank in self._finished]
        if call.mismatch or (call.present and ended):
            places = call.where() | ({"the end of training": ended} if ended else {})
            raise self._end(GateMismatchError.at(places))

    def _observed(self, message: m.Observed) -> None:
        reports = self._observations.report(message.rank, message.gate, message)
        if reports is not None:
            self._fire(message.gate, reports)

    def _at_gate(self, key: m.GateKey, reports: Mapping[int, m.Arrived]) -> None:
        """All ranks wait: fire once, then let them go with the reduced metrics."""
        outermost = not self._open
        if outermost:
            self.life.enter(Phase.GATE)
            self._trained, self._since = self.training_seconds, None
        self._open.append(key)
        then: Literal["go on", "terminate", "interrupt"] = "go on"
        if key.event == CUT:
            self._take_position(key, reports)
            if self.interrupted and self.on_interrupt is not None:
                self.on_interrupt()
        else:
            self._fire(key, reports)
        if key.engine == TRAINER and self.stop_reason is not None:
            then = "interrupt" if self.interrupted else "terminate"
        self._open.pop()
        metrics = dict(self.buses[key.engine].state.metrics)
        for worker in self._training():
            self.group.order(worker, m.Release(gate=key, metrics=metrics, then=then))
        if outermost:
            self.life.enter(Phase.RUNNING)
            self._since = time.monotonic()

    def _fire(self, key: m.GateKey, reports: Mapping[int, Report]) -> None:
        """Reduce what the ranks brought, and run the handlers due."""
        bus = self.buses[key.engine]
        self._take_position(key, reports)
        prototypes = self._built[self._workers[0]].metrics.get(key.engine, {})
        bus.state.metrics.update(reduce_packs([reports[rank].packs for rank in sorted(reports)], prototypes))
        bus.state.output = reduce_numbers([reports[rank].output for rank in sorted(reports)])
        if key.engine == TRAINER and key.event == Events.EPOCH_COMPLETED.key:
            self.journal.write("EPOCH_COMPLETED", metrics=bus.state.metrics)
        bus.fire(key.event, key.count)

    def _take_position(self, key: m.GateKey, reports: Mapping[int, Report]) -> None:
        first, state = reports[0], self.buses[key.engine].state
        state.iteration, state.epoch, state.epoch_length = first.iteration, first.epoch, first.epoch_length
        if key.engine == TRAINER:
            self.journal.iteration, self.journal.epoch = first.iteration, first.epoch
            self.samples = sum(report.samples for report in reports.values())

    # ---------------------------------------------------------------- faults
    def _fault(self, message: m.Fault) -> None:
        self._facts.faults.append(message)
        self._conclude()

    def _lost(self, came: Lost) -> None:
        self._facts.lost[came.worker] = came.cause
        self._conclude()

    def _conclude(self) -> None:
        """Hear what the others have to say for a moment, then end the run with one error that names the cause."""
        until = time.monotonic() + SETTLE
        while (left := until - time.monotonic()) > 0 and self._facts.silent(self._size()):
            came = self.group.take(left)
            if isinstance(came, m.Fault):
                self._facts.faults.append(came)
            elif isinstance(came, Lost):
                self._facts.lost[came.worker] = came.cause
            elif isinstance(came, m.Pulse):
                self._pulse(came)
            elif came is None and not self.group.needs_store:
                break
        error = verdict(self._facts)
        for worker, cause in self._facts.lost.items():
            place: Place | None = self._facts.places.get(worker)
            self.journal.write(
                "WORKER_LOST", rank=self._facts.ranks.get(worker), cause=cause,
                pid=None if place is None else place.pid, node=None if place is None else place.node,
            )  # fmt: skip
        raise self._end(error)

    def _end(self, error: RankfireError) -> RankfireError:
        """Remember what ended the run, so that no handler can swallow it; tell EXCEPTION_RAISED on the driver."""
        self._verdict = error
        self._roll_call = RollCall(self._world_size)
        bus = self.buses[TRAINER]
        if bus.listens(Events.EXCEPTION_RAISED):
            bus.fire(Events.EXCEPTION_RAISED.key, bus.state.counters[Events.EXCEPTION_RAISED.key] + 1, error)
        return error

    # ---------------------------------------------------------------- orders
    def ask(self, make: Callable[[int, int], m.Order], ranks: Iterable[int] | None = None) -> dict[int, m.Answer]:
        """Give ranks an order with an id, and pump until all have answered.

        Args:
            make: (order id, rank) → the order.
            ranks: whom to ask; None: all.

        Returns:
            rank → its answer.
        """
        if not self._open:
            raise SpecError(
                "orchestrator: evaluate, checkpoint and call need the ranks to wait; give the order inside a blocking "
                "driver handler, such as one of EPOCH_COMPLETED, or register yours with blocking=True"
            )
        asked = list(range(self._world_size)) if ranks is None else sorted(set(ranks))
        if wrong := [rank for rank in asked if not 0 <= rank < self._world_size]:
            raise SpecError(
                f"orchestrator.call(rank=…): expected ranks below the world size {self._world_size}, "
                f"received {name_ranks(wrong)}"
            )
        number = next(self._orders)
        for rank in asked:
            self.group.order(self._workers[rank], make(number, rank))
        while len(self._answers.get(number, {})) < len(asked):
            self.pump()
        return self._answers.pop(number)

    def evaluate(self, engine: str) -> dict[str, Any]:
        """Have all ranks evaluate their share; the metrics over all of them."""
        if engine not in self._built[self._workers[0]].engines:
            known = ", ".join(map(repr, self._built[self._workers[0]].engines))
            raise SpecError(f"orchestrator.evaluate: expected an engine of the program ({known}), received {engine!r}")
        answers = self.ask(lambda number, _: m.Evaluate(order=number, engine=engine))
        prototypes = self._built[self._workers[0]].metrics.get(engine, {})
        return reduce_packs([answers[rank].value for rank in sorted(answers)], prototypes)

    def call(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], ranks: Iterable[int] | None
    ) -> dict[int, m.Answer]:
        """Have ranks call a function; rank → its answer, failures among them."""
        pickled = cloudpickle.dumps((function, args, dict(kwargs)))
        return self.ask(lambda number, _: m.Call(order=number, pickled=pickled), ranks)

    def terminate(self, reason: str) -> None:
        """End training at the open gate, or at the next iteration boundary that all ranks can agree on."""
        if self.stop_reason is None:
            self.stop_reason = reason
        if not any(key.engine == TRAINER for key in self._open) and self._cut is None:
            self._propose_cut()

    def _interrupt(self, _: Interrupt) -> None:
        self.interrupted = True
        self.terminate("interrupted")

    def _propose_cut(self) -> None:
        if self.life.phase not in {Phase.RUNNING, Phase.GATE}:
            return
        self._cut = next(self._orders)
        for worker in self._training():
            self.group.order(worker, m.ProposeCut(order=self._cut))

    def _settle_cut(self) -> None:
        assert self._cut is not None
        target = max(answer.value for answer in self._answers.pop(self._cut).values())  # type: ignore[type-var]
        for worker in self._training():
            self.group.order(worker, m.CutAt(iteration=target))  # type: ignore[arg-type]

    # ---------------------------------------------------------------- small
    def _size(self) -> int:
        return self.group.size

    def _training(self) -> list[int]:
        """Workers that hold a rank, in the order of ranks; spares come behind them and wait."""
        return self._workers[: self._world_size]

    def _check_engines(self) -> None:
        known = self._built[self._workers[0]].engines
        for name in self.buses:
            if name not in known:
                raise SpecError(
                    f"orchestrator.on(engine={name!r}): the program has no such engine; it has "
                    f"{', '.join(map(repr, known))}"
                )
