"""What messages and orders are made of: failures as text, numbers, metric states, gates; and words of both sides.

Frozen values, no behaviour. Made on the ranks and on the driver, carried by `messages.py` and `orders.py`.

Exceptions never travel: a `Failure` carries their text. Tensors are opaque here, so this file needs no torch.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from workers.errors import RankfireError
from workers.events import EventExpression
from workers.redaction import redact
from workers.tracebacks import only_ours, place_of, text_of

__all__ = [
    "CUT",
    "TRAINER",
    "Failure",
    "FaultKind",
    "GateKey",
    "LoadPoint",
    "MetricPack",
    "Number",
    "Pack",
    "Planned",
    "RankHandler",
    "Receipt",
    "Reduction",
    "Rewind",
    "SnapshotLabel",
    "Then",
    "Where",
    "Writing",
]

TRAINER = "trainer"  # name of the engine that trains
CUT = "CUT"  # the gate of a consistent cut; no event of an engine has this key

FaultKind = Literal["user", "communication", "system", "memory"]
Reduction = Literal["mean", "sum", "min", "max"]
Then = Literal["go on", "terminate", "interrupt"]
"""What the trainer does after a gate."""
Where = int | Sequence[int] | Literal["all", "local_rank_0"]
"""On which ranks something runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An exception as text: what crosses the wire, also when it can't be pickled itself. Secrets are masked.

    Args:
        type_name: name of its class.
        text: what it says.
        traceback: with its causes, from the user's first frame on; empty for a refusal of ours to which no line of
            theirs led: its text says all.
        place: the user's line that raised it, as `file.py:28`; None if none of theirs did.
    """

    type_name: str
    text: str
    traceback: str
    place: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an exception, with its causes, in the order in which Python prints them."""
        try:
            text = str(error)
        except Exception as broken:  # a user's __str__ may raise; the report must get through
            text = f"<no text: str() raised {type(broken).__name__}>"
        try:
            lines = "" if isinstance(error, RankfireError) and only_ours(error) else text_of(error)
        except Exception:  # the same for a broken __str__ inside the chain
            lines = "".join(traceback.format_tb(error.__traceback__)) + f"{type(error).__qualname__}: {text}\n"
        name, place = type(error).__qualname__, place_of(error)
        return cls(type_name=name, text=redact(text), traceback=redact(lines), place=place)

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
class Writing:
    """How far a rank is with its share of a checkpoint.

    Args:
        path: of the file that it writes, in the staging folder.
        bytes: of that file that the storage has taken.
    """

    path: str
    bytes: int


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
    """A handler that runs on ranks: registered at the driver, shipped pickled, attached by every rank it names.

    One without an event attaches itself there: `handler.attach(engine, *args, **kwargs)`.
    """

    engine: str
    event: EventExpression | None
    where: Where
    pickled: bytes  # cloudpickle of (handler, args, kwargs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A file of a checkpoint that was written and synced: path relative to it, size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What one rank has to save, told before anything is copied.

    Args:
        plan: torch's plan of the tensors that it could write.
        spread: entries of the state that are equal on all ranks.
        state: bytes of the tensors in each entry.
        cursor: where the trainer's data stands: `seed`, and `position` in samples; empty if it has no global order.
        data: that data's fingerprint.
        settings: of its optimizers and schedulers, by entry and name, as texts.
    """

    plan: Any
    spread: tuple[str, ...]
    state: Mapping[str, int]
    cursor: Mapping[str, int]
    data: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPoint:
    """A committed checkpoint to start from, as the driver verified it.

    Args:
        url: path or URL of its folder.
        world_size: number of ranks that made it.
        entries: only these entries of its state are taken up, by a program that starts afresh; None: all of it, and
            training goes on where it stood.
        iteration: of the trainer, at which training goes on; 0 for a program that starts afresh.
        at: the gate at which this very driver had it made, with the last order that was carried out there before: the
            ranks come to that gate again. None: they go on behind it.
    """

    url: str
    world_size: int
    entries: tuple[str, ...] | None = None
    iteration: int = 0
    at: SnapshotLabel | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotLabel:
    """Which snapshot in memory: the same on every rank that holds it, since all take them at the same places.

    Args:
        iteration: of the trainer; so many are complete.
        gate: at which it was taken, on arriving; None between two iterations.
        order: id of the last order that was carried out at that gate before it was taken; 0 for none.

    Example:
        >>> str(SnapshotLabel(iteration=8))
        'iteration 8'
    """

    iteration: int
    gate: GateKey | None = None
    order: int = 0

    def __str__(self) -> str:
        where = "" if self.gate is None else f" at {self.gate}"
        return f"iteration {self.iteration}{where}" + (f", after order {self.order}" if self.order else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewind:
    """What a rank takes up in a new generation after a fault, instead of a checkpoint.

    Args:
        label: the snapshot.
        donor: rank that holds it and gives it to newcomers.
        newcomers: ranks that do not hold it.
        own: for a newcomer, what belonged to the rank it replaces, as that one told the driver; None for a rank that
            nobody held before, and for all that hold the snapshot.
    """

    label: SnapshotLabel
    donor: int
    newcomers: tuple[int, ...] = ()
    own: bytes | None = None
