"""Events of the cluster, which no engine fires: ranks that go and come, and what the driver does for all of them.

They fire on the driver, in the trainer's bus, which is told by a payload that says what happened. No rank waits at them
or reports them, so handlers may be registered at any time. The payload comes behind the orchestrator:

    @orchestrator.on(ClusterEvents.WORKER_LOST)
    def tell(run, lost):
        print(lost.rank, lost.cause, lost.text)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from orchestrator.causes import Cause
from workers.events import EventEnum

__all__ = [
    "CheckpointCommitted",
    "ClusterEvents",
    "EvaluationCompleted",
    "HangDetected",
    "Payload",
    "PreemptionNotice",
    "Recovered",
    "StragglerDetected",
    "WorkerJoined",
    "WorkerLost",
    "WorldResized",
]


class ClusterEvents(EventEnum):
    """The events that the driver fires by itself; the count of each is how often it has fired in this run.

    Example:
        >>> ClusterEvents.WORKER_LOST(every=2) | ClusterEvents.RECOVERED
        cluster.WORKER_LOST(every=2) | cluster.RECOVERED
    """

    WORKER_LOST = "cluster.WORKER_LOST"
    WORKER_JOINED = "cluster.WORKER_JOINED"
    RECOVERED = "cluster.RECOVERED"
    CHECKPOINT_COMMITTED = "cluster.CHECKPOINT_COMMITTED"
    EVALUATION_COMPLETED = "cluster.EVALUATION_COMPLETED"
    STRAGGLER_DETECTED = "cluster.STRAGGLER_DETECTED"
    HANG_DETECTED = "cluster.HANG_DETECTED"
    PREEMPTION_NOTICE = "cluster.PREEMPTION_NOTICE"
    WORLD_RESIZED = "cluster.WORLD_RESIZED"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost:
    """A worker is gone; before it is decided what becomes of the run.

    Args:
        rank: that it held; None for a spare.
        cause: why.
        text: how the loss was seen, in words.
        pid: of its process, if it had come up.
        node: id of its node.
        host: name of that machine.
    """

    event: ClassVar = ClusterEvents.WORKER_LOST
    rank: int | None
    cause: Cause
    text: str
    pid: int | None
    node: str | None
    host: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJoined:
    """A worker holds a rank now: each at the start of a run, and whoever takes the place of a lost one.

    Args:
        rank: that it holds.
        pid: of its process.
        node: id of its node.
        host: name of that machine.
        device: on which it computes.
        generation: of the membership that it joined; 0 at the start.
    """

    event: ClassVar = ClusterEvents.WORKER_JOINED
    rank: int
    pid: int
    node: str
    host: str
    device: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """All ranks train again after a loss.

    Args:
        ranks: that were lost; empty if contact broke while all lived.
        causes: why, the worst first.
        seconds: from the loss until all ranks trained again.
        iteration: of the trainer to which all went back.
        replayed: iterations that are done a second time.
        source: what they went back to: "snapshot" in memory, "checkpoint", or "start" if there was neither.
        world_size: ranks that train now.
        generation: of the new membership.
    """

    event: ClassVar = ClusterEvents.RECOVERED
    ranks: tuple[int, ...]
    causes: tuple[Cause, ...]
    seconds: float
    iteration: int
    replayed: int
    source: Literal["snapshot", "checkpoint", "start"]
    world_size: int
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointCommitted:
    """A checkpoint is complete and can be gone on from.

    Args:
        name: of its folder.
        url: path or URL of that folder.
        epoch: of the trainer, as saved.
        iteration: of the trainer, as saved.
        size: bytes of all files.
        metrics: that are noted in it, by name.
    """

    event: ClassVar = ClusterEvents.CHECKPOINT_COMMITTED
    name: str
    url: str
    epoch: int
    iteration: int
    size: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationCompleted:
    """All ranks have evaluated.

    Args:
        engine: that evaluated.
        metrics: over all ranks, by name.
        seconds: it took.
    """

    event: ClassVar = ClusterEvents.EVALUATION_COMPLETED
    engine: str
    metrics: Mapping[str, object]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StragglerDetected:
    """A rank's steps take much longer than those of the others; told once, until it has caught up.

    Args:
        rank: which one.
        seconds: that its step takes.
        others: seconds that those of the others take.
        ratio: between the two.
    """

    event: ClassVar = ClusterEvents.STRAGGLER_DETECTED
    rank: int
    seconds: float
    others: float
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HangDetected:
    """A rank has made no progress for `recovery.hang_timeout`; before it is ended.

    Args:
        rank: which one.
        how: "silent": its process gives no sign of life; "stuck": it does, and stands still.
        seconds: for how long.
        phase: what it did, as last told.
        iteration: of the trainer, as last told.
        sure: False if it is one of several, of which any may be the one for which the others wait.
        text: all this in words.
        stacks: file with the stacks of all ranks; None if there are none.
    """

    event: ClassVar = ClusterEvents.HANG_DETECTED
    rank: int
    how: Literal["silent", "stuck"]
    seconds: float
    phase: str
    iteration: int
    sure: bool
    text: str
    stacks: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreemptionNotice:
    """The cluster has announced that a node will be taken away.

    Args:
        ranks: that run there.
        node: its id.
        host: name of that machine.
        seconds: that are left.
    """

    event: ClassVar = ClusterEvents.PREEMPTION_NOTICE
    ranks: tuple[int, ...]
    node: str
    host: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldResized:
    """Training goes on with another number of ranks.

    Args:
        before: ranks until now.
        after: ranks from now on.
        generation: of the new membership.
    """

    event: ClassVar = ClusterEvents.WORLD_RESIZED
    before: int
    after: int
    generation: int


Payload = (
    WorkerLost
    | WorkerJoined
    | Recovered
    | CheckpointCommitted
    | EvaluationCompleted
    | StragglerDetected
    | HangDetected
    | PreemptionNotice
    | WorldResized
)
