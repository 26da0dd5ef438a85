"""What the driver tells a rank: frozen values. Those with an `order` id are answered.

Most wait for the training thread; `ProposeCut` and `CutAt` act at once, on the thread that brings them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from workers.events import EventExpression
from workers.parcels import GateKey, LoadPoint, RankHandler, Rewind, Then
from workers.rank import Membership

__all__ = [
    "Abort", "Build", "Call", "CutAt", "Evaluate", "FreezeSave", "Go", "Join", "Leave", "Order", "PlanSave",
    "ProposeCut", "Release", "acts_at_once",
]  # fmt: skip


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
        snapshots: iterations between two snapshots in memory; "auto": as few as cost little; None: there are none.
        datasets: by name, this rank's part of each Ray data set, cloudpickled; empty for a spare, which has none yet.
    """

    program: str | bytes
    config: Mapping[str, object]
    seed: int
    membership: Membership
    roots: tuple[str, ...] = ()
    gates: Mapping[str, EventExpression] = field(default_factory=dict)
    watches: Mapping[str, EventExpression] = field(default_factory=dict)
    handlers: tuple[RankHandler, ...] = ()
    threads: int | None = None
    snapshots: int | Literal["auto"] | None = None
    datasets: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Join(Order):
    """Form the process group of a generation and take up a state.

    `store` is the driver's (host, port); None means a world of one without a group. `timeout` is that of a collective,
    `forming` that of forming the group, both in seconds.
    """

    membership: Membership
    store: tuple[str, int] | None
    timeout: float
    forming: float = 15.0
    load: LoadPoint | None = None
    rewind: Rewind | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Go(Order):
    """Train.

    `cut` has the rank arrive at the gate CUT after so many iterations: all had agreed on that before a fault.
    """

    max_epochs: int | None
    max_iters: int | None
    epoch_length: int | None
    cut: int | None = None


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
    """Answer what this rank would write: a `Planned`."""

    order: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeSave(Order):
    """Copy this rank's share of the state, answer, and write it in the background; `Saved` tells when it is there.

    Args:
        url: the staging folder.
        plan: this rank's part of torch's global plan.
        given_up: staging folders of saves that nobody waits for any more. A rank whose storage has not let go of one
            of these yet does not begin another.
    """

    order: int
    url: str
    plan: Any
    given_up: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(Order):
    """Go on from a gate, with the reduced metrics; `then` ends the trainer's run.

    `order` is the last one at this gate that may have changed the ranks' state: a snapshot is taken then. 0: none did.
    """

    gate: GateKey
    metrics: Mapping[str, float]
    then: Then = "go on"
    order: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposeCut(Order):
    """Answer at once with the iteration in progress, and start none beyond it until `CutAt`."""

    order: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CutAt(Order):
    """Run up to this iteration and arrive at the gate CUT there."""

    iteration: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort(Order):
    """Let go of this generation at once: cut its links, unwind, answer `Stopped`, and wait for `Join`."""

    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave(Order):
    """Let go of everything and return."""


def acts_at_once(order: Order) -> bool:
    """Whether an order is carried out by the thread that brings it, so that it has no number.

    Example:
        >>> acts_at_once(Abort(generation=1)), acts_at_once(Leave())
        (True, False)
    """
    return isinstance(order, ProposeCut | CutAt | Abort)
