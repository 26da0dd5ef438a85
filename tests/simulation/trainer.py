"""The training of a simulated rank: the loop of `workers/engine.py`, gates, cuts, and the snapshots to go back to."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tests.simulation.life import Life, Steps
from tests.simulation.model import State, mix
from workers.boundary import at_boundary
from workers.events import Event, EventExpression, Events
from workers.messages import Arrived, Observed, SnapshotTaken
from workers.orders import Build, Go, Release
from workers.parcels import CUT, TRAINER, GateKey, Number, SnapshotLabel
from workers.rewinding import BEGIN

__all__ = ["Trainer"]

NEVER = 1 << 60
ENDS = ("TERMINATE", "INTERRUPT", "COMPLETED")
QUIET = {"terminating": False, "interrupting": False}
_PLAIN = {event.key: event for event in Events}


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """A state to go back to, and what was asked of the trainer then."""

    label: SnapshotLabel
    state: State
    requests: Mapping[str, bool]


class Trainer(Life):
    """One rank, as far as it trains."""

    gates: Mapping[str, EventExpression]
    watches: Mapping[str, EventExpression]
    _built_as: Build
    _forming = False

    def __init__(self, *given: Any) -> None:
        self.ring: list[Snapshot] = []
        self.at: SnapshotLabel | None = None
        self.rewinds = False  # whether it may go back: from the first join on
        self.snapshots = True  # whether it takes any
        self.asked: dict[SnapshotLabel, Mapping[str, bool]] = {}  # what the trainer was asked then
        self.visits: dict[str, int] = {}
        self.requests = dict(QUIET)
        self.call_fails = False  # the next call raises here
        super().__init__(*given)

    # ---------------------------------------------------------------- the loop
    def train(self, order: Go) -> Steps:
        """As `Engine.run`, from where the last rewind led to."""
        state, after = self.state, None
        label, self.at = self.at, None
        self.requests = dict(QUIET)
        self._goal = order
        if label is not None and label.gate != BEGIN:
            self.requests = dict(self.asked[label])
            after = "ITERATION_COMPLETED" if label.gate is None else label.gate.event
            self._arm(order)
            if label.gate is not None:
                yield from self.wait_at(label.gate, after=label.order)
        else:
            self._arm(order)
            resumes = state.loaded and (state.iteration > 0 or state.fired.get("STARTED", 0) > 0)
            yield from self._fire_once("RESUMED" if resumes else "STARTED")
        if after not in (None, "STARTED", "RESUMED", "EPOCH_COMPLETED", *ENDS):
            yield from self._run_epoch()
        while not (after in ENDS or any(self.requests.values())) and self._epochs_left():
            yield from self._run_epoch()
        if self.requests["interrupting"] and not self.requests["terminating"]:
            if after != "INTERRUPT":
                yield from self._fire_once("INTERRUPT")
            return
        if self.requests["terminating"] and after not in ENDS:
            yield from self._fire_once("TERMINATE")
        if after != "COMPLETED":
            yield from self._fire_once("COMPLETED")

    def _arm(self, order: Go) -> None:
        """As `Cut.arm`."""
        if order.cut is not None and not self.cut_cancelled:
            self.cut_asked, self.cut_target = NEVER, order.cut

    def _run_epoch(self) -> Steps:
        state = self.state
        epoch = state.epoch = state.epochs_completed + 1
        if state.epochs_started < epoch:
            state.epochs_started = epoch
            yield from self.fire(TRAINER, "EPOCH_STARTED", epoch)
        length = self._length
        last = min(epoch * length, NEVER if self._goal.max_iters is None else self._goal.max_iters)
        if state.iteration < last and not any(self.requests.values()):
            yield from self._iterate(last)
        if state.iteration >= epoch * length:
            state.epochs_completed = epoch
            yield from self.fire(TRAINER, "EPOCH_COMPLETED", epoch)

    def _iterate(self, last: int) -> Steps:
        state = self.state
        number = state.iteration
        while number < last:
            number += 1
            self.announced = number
            yield from self._attend()
            if any(self.requests.values()):
                break
            yield self.busy("fetch", 0.0, 0.01)
            state.iteration = number
            yield from self.fire(TRAINER, "ITERATION_STARTED", number)
            yield self.busy("step", 0.01, 0.06)
            yield from self._go_astray()
            state.own = mix(state.own, number)
            brought = yield from self.join_in(("step", number), (state.model, state.own))
            if len({model for model, _ in brought.values()}) > 1:
                self.world.violate(f"the ranks hold different models in iteration {number}: {brought}")
            state.step({rank: own for rank, (_, own) in brought.items()})
            self.world.oracle.seen(self)
            yield from self.fire(TRAINER, "ITERATION_COMPLETED", number)
            every = self.world.config.between
            if every and self.rewinds and number % every == 0 and not (self.held and self.held[-1].iteration >= number):
                yield from self.take(SnapshotLabel(iteration=number))

    def _go_astray(self) -> Steps:
        """Wait in a collective of which the others know nothing, if that was struck."""
        if self.world.astray == (self.state.iteration, self.membership.rank):
            if not any(strike.kind == "astray always" for strike in self.world.strikes):
                self.world.astray = None
            yield from self.join_in(("astray", self.membership), None, list(range(self.membership.world_size)))

    def _attend(self) -> Steps:
        """What is looked at before an iteration: the next generation, a cut."""
        self.boundary()
        if self.cut_asked is None:
            return
        if self.announced > self.cut_asked:
            yield "cut"
        if self.cut_cancelled:
            self.cut_asked = None
            return
        if self.cut_target is None or self.announced - 1 < self.cut_target:
            return
        self.cut_asked = None
        yield from self._come_to(GateKey(engine=TRAINER, event=CUT, count=self.announced - 1))

    def _epochs_left(self) -> bool:
        state, goal = self.state, self._goal
        if goal.max_iters is None:
            return state.epochs_completed < (goal.max_epochs or 0)
        return state.iteration >= (state.epochs_completed + 1) * self._length or state.iteration < goal.max_iters

    @property
    def _length(self) -> int:
        return self._goal.epoch_length or self.world.config.epoch_length

    # ---------------------------------------------------------------- events
    def _fire_once(self, event: str) -> Steps:
        count = self.state.fired[event] = self.state.fired.get(event, 0) + 1
        yield from self.fire(TRAINER, event, count)

    def fire(self, engine: str, event: str, count: int, visit: int | None = None) -> Steps:
        """As `workers/gates.py`: wait where the driver wants to be waited for, tell what it only watches."""
        base, gate, watch = _PLAIN[event], self.gates.get(engine), self.watches.get(engine)
        key = GateKey(engine=engine, event=event, count=count, visit=self.visits.get(engine, 0))
        if gate is not None and _matches(gate, base, count):
            yield from self._come_to(key)
        elif watch is not None and _matches(watch, base, count):
            self.send(Observed, gate=key, **self._report())

    def _come_to(self, key: GateKey) -> Steps:
        if self.rewinds and at_boundary(key):
            yield from self.take(SnapshotLabel(iteration=self.state.iteration, gate=key))
        yield from self.wait_at(key)

    def wait_at(self, key: GateKey, after: int = 0) -> Steps:
        """As `Session._wait_at`."""
        before = self.note(f"arriving at {key}")
        yield self.busy("arrive", 0.0, 0.01)
        self.send(Arrived, gate=key, after=after, **self._report())
        self.note(f"waiting at {key}")
        while not isinstance(order := (yield "mail"), Release):
            yield from self.carry_out(order)
        if order.gate != key:
            self.world.violate(f"rank {self.membership.rank} was released from {order.gate} while it waited at {key}")
        self.note(before)
        yield self.busy("released", 0.0, 0.01)
        if self.rewinds and order.order > after and at_boundary(key):
            yield from self.take(SnapshotLabel(iteration=self.state.iteration, gate=key, order=order.order))
        if key.event != CUT:  # what is told there depends on when it comes
            self.state.told.update(order.metrics)
        if order.then == "terminate":
            self.requests["terminating"] = True
        elif order.then == "interrupt":
            self.requests["interrupting"] = True

    def _report(self) -> dict[str, Any]:
        state = self.state
        loss = Number(value=mix(state.model, state.own) % 1000 / 10)
        return {
            "epoch": state.epoch, "iteration": state.iteration, "epoch_length": self.world.config.epoch_length,
            "samples": state.samples, "packs": {"loss": loss}, "output": {"loss": loss},
        }  # fmt: skip

    # ---------------------------------------------------------------- snapshots
    def take(self, label: SnapshotLabel) -> Steps:
        """As `Rewinder.take`: a collective, where buffers are shared."""
        if not self.snapshots:
            self.asked = {label: dict(self.requests)}
            return
        if self.world.config.buffers:
            yield from self.join_in(("buffers", str(label)), None)
        self.put(label, self.state.copy(), dict(self.requests))
        yield self.busy("take", 0.0, 0.01)
        own = replace(self.state.copy(), model=0)
        self.send(SnapshotTaken, label=label, own=pickle.dumps((dict(self.requests), own)))

    def put(self, label: SnapshotLabel, state: State, requests: Mapping[str, bool]) -> None:
        """Keep a snapshot, in the place of the one of that label, or of the oldest of two."""
        self.ring = [known for known in self.ring if known.label != label]
        self.ring = [*self.ring[-1:], Snapshot(label=label, state=state, requests=requests)]
        self.held = tuple(known.label for known in self.ring)
        self.asked = {known.label: known.requests for known in self.ring}

    def restore(self, label: SnapshotLabel) -> None:
        """Be there again; newer snapshots are dropped."""
        snapshot = self.snapshot(label)
        self.ring = self.ring[: self.ring.index(snapshot) + 1]
        self.held = tuple(known.label for known in self.ring)
        self.state = snapshot.state.copy()
        self.state.loaded = True
        self.at = label

    def snapshot(self, label: SnapshotLabel) -> Snapshot:
        for known in self.ring:
            if known.label == label:
                return known
        raise self.world.violate(f"rank {self.membership.rank} holds {self.held}, and shall go back to {label}")


def _matches(expression: EventExpression, base: Event, count: int) -> bool:
    return expression.matches(base, count, None)
