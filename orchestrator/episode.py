"""One fault and what is done about it, as values: what was lost, and what regrouping needs of the run around it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from orchestrator.causes import Cause
from orchestrator.cluster_events import Payload, Recovered
from workers.left_behind import LeftBehind
from workers.parcels import GateKey, LoadPoint, Rewind, SnapshotLabel

__all__ = ["Episode", "Way", "keep_newest"]

KEPT = 3  # snapshots of a rank of which its own part is kept: one more than the rank holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What regrouping needs of the run around it.

    Args:
        join: have the ranks form their group; gets the rewinds by rank, or the checkpoint to load.
        regrouped: called when the ranks have joined, with the workers that were lost, and where training goes on.
        checkpoint: the newest valid checkpoint; None if there is none.
        go: have them train.
        leave_behind: keeps what a rank had measured whose place nobody takes.
        gate: at which the ranks stand; None: at none.
        samples: iteration → what it is given, in words.
        pause: called when the ranks stop.
        tell: called with each cluster event.
    """

    join: Callable[[dict[int, Rewind] | None, LoadPoint | None], None]
    regrouped: Callable[[Collection[int], SnapshotLabel | None], None]
    checkpoint: Callable[[], LoadPoint | None]
    go: Callable[[], None]
    leave_behind: Callable[[LeftBehind], None]
    gate: Callable[[], GateKey | None]
    samples: Callable[[int], str]
    pause: Callable[[], None]
    tell: Callable[[Payload], None]


@dataclass(slots=True)
class Episode:
    """One fault, and what came of it while it was being mended.

    Args:
        began: when, in seconds on a monotonic clock.
        reached: the farthest iteration in which a rank was.
        lost: worker → the rank that it was, and how its loss was seen.
        causes: of those losses, in the order in which they came.
        attempts: generations that were begun.
        late: whether it was begun anew since the ranks did not join in time.
        untaken: worker → what belonged to its rank alone at each snapshot, where nobody took its place.
    """

    began: float
    reached: int = 0
    lost: dict[int, tuple[int, str]] = field(default_factory=dict)
    causes: list[Cause] = field(default_factory=list)
    attempts: int = 0
    late: bool = False
    untaken: dict[int, dict[SnapshotLabel, bytes]] = field(default_factory=dict)

    def recovered(self, label: SnapshotLabel | None, seconds: float, generation: int) -> Recovered:
        """What is told when all train again.

        Args:
            label: of the snapshot to which all went back; None: to a checkpoint.
            seconds: that it took.
            generation: of the new membership.
        """
        iteration = 0 if label is None else label.iteration
        return Recovered(
            ranks=tuple(sorted(rank for rank, _ in self.lost.values())),
            causes=tuple(dict.fromkeys(self.causes)),
            seconds=seconds,
            iteration=iteration,
            replayed=max(0, self.reached - iteration),
            source="checkpoint" if label is None else "snapshot",
            generation=generation,
        )


def keep_newest(known: dict[SnapshotLabel, bytes], label: SnapshotLabel, own: bytes) -> None:
    """Keep what a rank told of a snapshot, and of the few before it.

    Args:
        known: what it told, the oldest first.
        label: of the new one.
        own: what would die with the rank.
    """
    known.pop(label, None)
    known[label] = own
    while len(known) > KEPT:
        del known[next(iter(known))]
