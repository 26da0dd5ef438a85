"""What a rank tells the driver, up its stream: frozen values stamped with generation, worker, rank, sequence number.

What the driver tells a rank stands in `orders.py`, what both are made of in `parcels.py`.
The protocol (who sends what when) is told in `orchestrator/README.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workers.parcels import Failure, FaultKind, GateKey, Number, Pack, SnapshotLabel, Writing
from workers.rank import Place

__all__ = [
    "Answer",
    "Arrived",
    "Built",
    "Fault",
    "Finished",
    "Hello",
    "Joined",
    "Mended",
    "Message",
    "Observed",
    "Pulse",
    "Saved",
    "SnapshotTaken",
    "Stopped",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What every message to the driver carries."""

    generation: int
    worker: int
    rank: int
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Message):
    """The process is up; nothing is built yet.

    Args:
        place: where it lives.
        versions: of what it has in common with the driver, by package.
    """

    place: Place
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Built(Message):
    """`build()` returned a program that can be run; if it `shards` models, it is built again when the ranks have met.

    `metrics` are empty copies of the attached metrics: what the driver needs to compute a reduced one. `data` is the
    fingerprint of the trainer's data; empty if it has no global order.
    """

    device: str
    seconds: float
    engines: tuple[str, ...]
    state_bytes: Mapping[str, int]
    metrics: Mapping[str, Mapping[str, object]]
    data: Mapping[str, Any]
    threads: int = 1
    shards: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined(Message):
    """The process group is formed and the state restored.

    Args:
        samples: that this rank had consumed in training by then.
    """

    samples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotTaken(Message):
    """This rank holds another snapshot in memory.

    Args:
        label: which one.
        own: what dies with this rank: its random numbers, engines, metrics, data; pickled, for who replaces it.
    """

    label: SnapshotLabel
    own: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(Message):
    """The training thread has let go of everything after `Abort`, or after a peer was lost; it waits for `Join`.

    Args:
        held: the snapshots in its memory, the newest last.
        iteration: in which it was, or which it had completed at a gate.
        kills: as in `Pulse`.
    """

    held: tuple[SnapshotLabel, ...]
    iteration: int
    kills: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Message):
    """A firing that the driver listens to.

    Args:
        gate: which firing.
        epoch: of the engine that fired.
        iteration: of that engine.
        epoch_length: iterations in its epoch, if known.
        samples: that this rank has consumed in training.
        packs: the engine's metrics.
        output: the numbers in its last output.
    """

    gate: GateKey
    epoch: int
    iteration: int
    epoch_length: int | None
    samples: int
    packs: Mapping[str, Pack]
    output: Mapping[str, Number]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived(Report):
    """This rank waits at a gate; `after` is the order that its state knows of, where it came back after a fault."""

    after: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed(Report):
    """A watched event fired; nobody waits, so numbers that are on another device than the CPU are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Message):
    """An order with an id is done, or failed.

    Args:
        order: its id.
        value: what came of it.
        failure: why nothing did.
        kind: whose fault that was.
    """

    order: int
    value: object = None
    failure: Failure | None = None
    kind: FaultKind = "user"

    @property
    def of_user(self) -> bool:
        """Whether it tells of a user's exception."""
        return self.failure is not None and self.kind == "user"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved(Message):
    """This rank's share of a checkpoint is written and synced, or could not be; nobody waits for it at a gate.

    Args:
        url: the staging folder.
        written: receipts, and torch's results for the index.
        failure: why there is nothing.
    """

    url: str
    written: object = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault(Message):
    """The training thread caught an exception; this rank serves nothing but `Leave` from here on."""

    kind: FaultKind
    phase: str
    iteration: int
    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended(Message):
    """Something broke on this rank that it could mend by itself; training goes on.

    Args:
        text: what, in words.
        iteration: of the trainer, the last one that was completed or is in progress.
    """

    text: str
    iteration: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse(Message):
    """A sign of life with progress, at least every half second.

    Args:
        phase: what the training thread does, in words.
        moves: from one thing to the next since that iteration began, and iterations of other engines: what tells, with
            the iteration, how far a rank has come.
        idle: seconds since it last made progress.
        busy: seconds that the training thread has spent between two backward passes, where it waits for nobody.
        samples: samples that this rank has consumed in training; 0 if the data does not say.
        drops: observations lost because the driver was slower than they came.
        kills: processes that the kernel of this machine has killed for lack of memory since it was started.
        writing: how far it is with its share of a checkpoint; None: it does not write.
    """

    phase: str
    iteration: int
    epoch: int
    moves: int
    idle: float
    busy: float
    samples: int
    drops: int
    output: Mapping[str, Number]
    kills: int = 0
    writing: Writing | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Message):
    """The trainer's run ended on this rank; `completed`: it reached its goal."""

    iteration: int
    epoch: int
    completed: bool = True
