"""One fault and what is done about it, as values: what was lost, and what regrouping needs of the run around it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from orchestrator.causes import Cause, in_words
from orchestrator.cluster_events import Payload, Recovered, WorkerLost
from orchestrator.wording import name_ranks
from workers.left_behind import LeftBehind
from workers.parcels import GateKey, LoadPoint, Rewind, SnapshotLabel

__all__ = ["Episode", "Way", "keep_newest", "loss_in_words"]

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
    """One fault, or growth, and what came of it while it was being mended.

    Args:
        began: when, in seconds on a monotonic clock.
        fault: whether something went wrong; else the world only grows.
        reached: the farthest iteration in which a rank was.
        lost: worker → what was told of its end.
        causes: of those losses, in the order in which they came.
        attempts: generations that were begun.
        late: whether it was begun anew since the ranks did not join in time.
        untaken: worker → what belonged to its rank alone at each snapshot, where nobody took its place.
    """

    began: float
    fault: bool
    reached: int = 0
    lost: dict[int, WorkerLost] = field(default_factory=dict)
    causes: list[Cause] = field(default_factory=list)
    attempts: int = 0
    late: bool = False
    untaken: dict[int, dict[SnapshotLabel, bytes]] = field(default_factory=dict)

    def recovered(self, back: SnapshotLabel | LoadPoint | None, *, world_size: int, generation: int) -> Recovered:
        """What is told when all ranks train again.

        Args:
            back: what they went back to; None: to the start.
            world_size: ranks that train now.
            generation: of the new membership.
        """
        begun = back is None or (isinstance(back, LoadPoint) and back.entries is not None)
        iteration = 0 if back is None else back.iteration
        return Recovered(
            ranks=tuple(sorted(lost.rank for lost in self.lost.values() if lost.rank is not None)),
            causes=tuple(dict.fromkeys(self.causes)),
            seconds=round(time.monotonic() - self.began, 3),
            iteration=iteration,
            replayed=max(0, self.reached - iteration),
            source="start" if begun else "checkpoint" if isinstance(back, LoadPoint) else "snapshot",
            world_size=world_size,
            generation=generation,
        )

    def left_at(self, label: SnapshotLabel | None) -> list[bytes]:
        """What belonged to ranks whose place nobody took, where the others go on.

        Orders that others carried out at that gate, and these did not live to, have changed nothing of it.

        Args:
            label: of the snapshot to which all go back; None: to a checkpoint, which holds all.
        """
        found: list[bytes] = []
        if label is None:
            return found
        for own in self.untaken.values():
            there = [
                one for one in own if replace(one, order=0) == replace(label, order=0) and one.order <= label.order
            ]
            found += [own[one] for one in sorted(there, key=lambda one: one.order)[-1:]]
        return found

    def in_words(self, recovered: Recovered, before: int) -> str | None:
        """The line that tells of it; None if there is nothing to tell.

        Args:
            recovered: how it ended.
            before: ranks until now.
        """
        now, more = recovered.world_size, recovered.world_size - before
        if not self.fault:
            if more <= 0:
                return None
            return f"{'a worker' if more == 1 else f'{more} workers'} joined: {_ranks(before)} → {now}"
        without = "ranks had waited for each other" if "hang" in self.causes else "ranks had lost contact"
        lost = f"lost: {name_ranks(recovered.ranks)}" if self.lost else without
        resized = f"; {_ranks(before)} → {now}" if more else ""
        iteration = f"iteration {recovered.iteration}"
        back = {"snapshot": iteration, "checkpoint": f"the checkpoint of {iteration}", "start": "the start"}
        return f"recovered in {recovered.seconds:.2f} s, back to {back[recovered.source]} ({lost}{resized})"


def loss_in_words(lost: WorkerLost) -> str:
    """The line that tells of a rank's loss."""
    process = "" if lost.pid is None else f" (pid {lost.pid} on {lost.host})"
    return f"rank {lost.rank}{process} is lost: {in_words(lost.text)}"


def _ranks(number: int) -> str:
    return "1 rank" if number == 1 else f"{number} ranks"


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
