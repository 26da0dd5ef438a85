"""Everything that travels between a rank and the driver: frozen values, no behaviour.

Up the stream go `Message`s, each stamped with generation, worker, rank and a sequence number; down go `Order`s.
Exceptions never travel: a `Failure` carries their text. Tensors and plans are opaque here, so this file needs no torch.
The protocol (who sends what when) is told in `orchestrator/README.md`.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from workers.events import EventExpression
from workers.rank import Membership, Place

__all__ = [
    "Answer", "Arrived", "Build", "Built", "Call", "CutAt", "Evaluate", "Failure", "Fault", "Finished", "GateKey",
    "Go", "Hello", "Join", "Joined", "Leave", "LoadPoint", "Message", "MetricPack", "Number", "Observed", "Order",
    "PlanSave", "ProposeCut", "Pulse", "RankHandler", "Release", "WriteSave",
]  # fmt: skip

FaultKind = Literal["user", "communication", "system"]
Reduction = Literal["mean", "sum", "min", "max"]


# ---------------------------------------------------------------- parts
@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An exception as text: what crosses the wire, also when the exception itself can't be pickled."""

    type_name: str
    text: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an exception, with its causes, in the order in which Python prints them."""
        try:
            text = str(error)
        except Exception as broken:  # a user's __str__ may raise; the report must get through
            text = f"<no text: str() raised {type(broken).__name__}>"
        try:
            lines = "".join(traceback.format_exception(error))
        except Exception:  # the same for a broken __str__ inside the chain
            lines = "".join(traceback.format_tb(error.__traceback__)) + f"{type(error).__qualname__}: {text}\n"
        return cls(type_name=type(error).__qualname__, text=text, traceback=lines)

    def __str__(self) -> str:
        return f"{self.type_name}: {self.text}" if self.text else self.type_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A plain number that is to be reduced over ranks.

    Args:
        value: this rank's value.
        count: its weight in a `mean`: how many samples it stands for. Unused by the other reductions.
        reduce: how the ranks' values become one.

    Example:
        >>> engine.state.metrics["tokens"] = Number(value=1024, reduce="sum")  # doctest: +SKIP
    """

    value: float
    count: float = 1.0
    reduce: Reduction = "mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricPack:
    """One rank's state of a torchmetrics metric: module path → (states, number of updates)."""

    parts: Mapping[str, tuple[Mapping[str, object], int]]


Pack = Number | MetricPack


@dataclass(frozen=True, slots=True, kw_only=True)
class GateKey:
    """Which firing a rank waits at: the same on every rank, or it is an error that names who is where.

    `visit` tells runs of one engine apart: 0 for the trainer, the order id for an evaluation.
    """

    engine: str
    event: str
    count: int
    visit: int = 0

    def __str__(self) -> str:
        return f"{self.engine} {self.event} #{self.count}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankHandler:
    """A handler that runs on ranks: registered at the driver, shipped pickled, attached by every rank it names."""

    engine: str
    event: EventExpression
    name: str
    where: int | tuple[int, ...] | Literal["all", "local_rank_0"]
    pickled: bytes  # cloudpickle of (handler, args, kwargs)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPoint:
    """A committed checkpoint to start from: its folder, as the driver verified it."""

    folder: str
    world_size: int


# ---------------------------------------------------------------- up
@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What every message to the driver carries."""

    generation: int
    worker: int
    rank: int
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Message):
    """The process is up; nothing is built yet."""

    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Built(Message):
    """`build()` returned a program that can be run.

    `metrics` are empty copies of the attached metrics: what the driver needs to compute a reduced one.
    """

    device: str
    seconds: float
    engines: tuple[str, ...]
    state_bytes: Mapping[str, int]
    metrics: Mapping[str, Mapping[str, object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined(Message):
    """The process group is formed and the state restored; `iteration` is where training will go on."""

    iteration: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived(Message):
    """This rank waits at a gate."""

    gate: GateKey
    epoch: int
    iteration: int
    epoch_length: int | None
    samples: int
    packs: Mapping[str, Pack]
    output: Mapping[str, Number]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed(Message):
    """A watched event fired; nobody waits."""

    gate: GateKey
    epoch: int
    iteration: int
    epoch_length: int | None
    samples: int
    packs: Mapping[str, Pack]
    output: Mapping[str, Number]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Message):
    """An order with an id is done, or failed."""

    order: int
    value: object = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault(Message):
    """The training thread caught an exception; this rank serves nothing but `Leave` from here on."""

    kind: FaultKind
    phase: str
    iteration: int
    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse(Message):
    """A sign of life with progress, at least every half second.

    Args:
        phase: what the training thread does, in words.
        idle: seconds since it last made progress.
        samples: samples that this rank has consumed since it joined; 0 if the data does not say.
        drops: observations lost because the driver was slower than they came.
    """

    phase: str
    iteration: int
    epoch: int
    idle: float
    samples: int
    drops: int
    output: Mapping[str, Number]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Message):
    """The trainer's run ended on this rank."""

    iteration: int
    epoch: int


# ---------------------------------------------------------------- down
@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Root of what the driver tells a rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build(Order):
    """Build the program.

    Args:
        program: `"module:attribute"`, or the cloudpickled build function.
        roots: folders that go to the front of `sys.path` first.
        gates: per engine, the firings at which to wait for the driver.
        watches: per engine, the firings to report without waiting.
        threads: torch threads per rank; None leaves torch's choice.
    """

    program: str | bytes
    config: Mapping[str, object]
    seed: int
    membership: Membership
    roots: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    gates: Mapping[str, EventExpression] = field(default_factory=dict)
    watches: Mapping[str, EventExpression] = field(default_factory=dict)
    handlers: tuple[RankHandler, ...] = ()
    threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Join(Order):
    """Form the process group of a generation and take up a state.

    `store` is the driver's (host, port); None means a world of one without a group. `timeout` is in seconds.
    """

    membership: Membership
    store: tuple[str, int] | None
    timeout: float
    load: LoadPoint | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Go(Order):
    """Train."""

    max_epochs: int | None
    max_iters: int | None
    epoch_length: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate(Order):
    """Run one engine once over its data; answered with this rank's metric packs."""

    order: int
    engine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Order):
    """Call a cloudpickled (function, args, kwargs) as `function(worker, *args, **kwargs)`."""

    order: int
    pickled: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSave(Order):
    """Freeze the state and answer what this rank would write."""

    order: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteSave(Order):
    """Write this rank's part of the frozen state into a staging folder; answered with receipts."""

    order: int
    folder: str
    plan: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(Order):
    """Go on from a gate, with the reduced metrics; `then` ends the trainer's run."""

    gate: GateKey
    metrics: Mapping[str, float]
    then: Literal["go on", "terminate", "interrupt"] = "go on"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposeCut(Order):
    """Answer at once with the iteration in progress, and start none beyond it until `CutAt`."""

    order: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CutAt(Order):
    """Run up to this iteration and arrive at the gate CUT there."""

    iteration: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave(Order):
    """Let go of everything and return."""
