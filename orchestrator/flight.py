"""A save that the ranks are writing, and whether it comes on: a storage that does not answer says no word of it.

Pure: what ranks tell and what time it is come from `saving.py`, which acts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.checkpoints.manifest import Manifest
from orchestrator.checkpoints.registry import Staging
from workers.messages import Pulse, Saved
from workers.parcels import SnapshotLabel, Writing

if TYPE_CHECKING:
    from orchestrator.checkpoints.plan import GlobalPlan  # a second of imports, at the first save

__all__ = ["Flight", "Stuck"]

BEAT = 1.0  # seconds at most that count between two pulses of a rank: while nobody hears it, nothing is known


@dataclass(frozen=True, slots=True, kw_only=True)
class Stuck:
    """A rank does not come on with its share.

    Args:
        rank: which one, when the save began.
        writing: what it writes.
        seconds: for how long it has not come on.
    """

    rank: int
    writing: Writing | None
    seconds: float

    def __str__(self) -> str:
        where = (
            "its share" if self.writing is None else f"{self.writing.path}, of which it has {self.writing.bytes} bytes"
        )
        return f"rank {self.rank} has not come on for {self.seconds:.0f} s with {where}: the storage does not answer"


@dataclass(slots=True, kw_only=True)
class Flight:
    """A save that the ranks are writing.

    Args:
        staging: where.
        manifest: what it will be, except for its files.
        plan: who writes what.
        writers: worker → its rank when the save began.
        label: where it was begun.
        told: rank → its word, when it has written.
        doomed: whether a rank was lost before it had written its share.
    """

    staging: Staging
    manifest: Manifest
    plan: GlobalPlan
    writers: dict[int, int]
    label: SnapshotLabel
    told: dict[int, Saved] = field(default_factory=dict)
    doomed: bool = False
    _heard: dict[int, tuple[Pulse, float]] = field(default_factory=dict)  # rank → its last pulse, and when it came
    _quiet: dict[int, float] = field(default_factory=dict)  # rank → seconds in which it told of no progress

    def look(self, pulses: Iterable[Pulse], now: float) -> None:
        """Take in how far the ranks are. Who says nothing, stopped or lost, is not judged by that.

        Args:
            pulses: the last one of each rank.
            now: seconds on a clock that never goes back.
        """
        for pulse in pulses:
            rank = self.writers.get(pulse.worker)
            if rank is None:
                continue
            before, at = self._heard.get(rank, (None, now))
            if pulse is before:
                continue
            came_on = before is None or before.writing != pulse.writing
            self._quiet[rank] = 0.0 if came_on else self._quiet[rank] + min(now - at, BEAT)
            self._heard[rank] = pulse, now

    def stuck(self, patience: float) -> Stuck | None:
        """The rank that has not come on for the longest time, if that is longer than so many seconds."""
        owing = {rank: seconds for rank, seconds in self._quiet.items() if rank not in self.told}
        rank = max(owing, key=lambda one: owing[one], default=None)
        if rank is None or owing[rank] <= patience:
            return None
        return Stuck(rank=rank, writing=self._heard[rank][0].writing, seconds=owing[rank])
