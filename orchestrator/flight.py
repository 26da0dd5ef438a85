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

AWAKE = 1.0  # seconds at most that count between two looks: while the driver looks away, ranks are not heard


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
    _places: dict[int, Writing | None] = field(default_factory=dict)  # rank → where it was when it last came on
    _quiet: dict[int, float] = field(default_factory=dict)  # rank → seconds since then
    _looked: float | None = None

    def look(self, pulses: Iterable[Pulse], now: float) -> None:
        """Take in how far the ranks are.

        Args:
            pulses: the last one of each rank.
            now: seconds on a clock that never goes back.
        """
        passed = 0.0 if self._looked is None else min(now - self._looked, AWAKE)
        self._looked = now
        for pulse in pulses:
            rank = self.writers.get(pulse.worker)
            if rank is None:
                continue
            came_on = rank not in self._places or self._places[rank] != pulse.writing
            self._places[rank] = pulse.writing
            self._quiet[rank] = 0.0 if came_on else self._quiet[rank] + passed

    def stuck(self, patience: float) -> Stuck | None:
        """The rank that has not come on for the longest time, if that is longer than so many seconds."""
        owing = {rank: seconds for rank, seconds in self._quiet.items() if rank not in self.told}
        rank = max(owing, key=lambda one: owing[one], default=None)
        if rank is None or owing[rank] <= patience:
            return None
        return Stuck(rank=rank, writing=self._places[rank], seconds=owing[rank])
