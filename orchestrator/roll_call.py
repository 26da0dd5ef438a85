"""Who has arrived where: pure bookkeeping of gates and of watched events, without Ray, clock or network.

A gate blocks, so a rank stands at one gate at most, and two ranks at different gates can never meet; nor can a rank at
a gate and one that has left the order, or the training, within which that gate lies. A watched event blocks nobody:
ranks report it at their own pace, and it counts when all have.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from workers.parcels import GateKey

__all__ = ["Asked", "Observations", "RollCall", "parted"]

Report = TypeVar("Report")


class RollCall(Generic[Report]):
    """The gate at which the ranks gather.

    Args:
        world_size: how many ranks must arrive.

    Example:
        >>> call = RollCall(world_size=2)
        >>> key = GateKey(engine="trainer", event="EPOCH_COMPLETED", count=1)
        >>> call.arrive(0, key, "a"); call.full
        False
        >>> call.arrive(1, key, "b"); call.full
        True
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._at: dict[int, tuple[GateKey, Report]] = {}

    def arrive(self, rank: int, key: GateKey, report: Report) -> None:
        """Mark a rank as waiting at a gate."""
        assert rank not in self._at, f"rank {rank} arrived at {key} while it waits at {self._at[rank][0]}"
        self._at[rank] = (key, report)

    @property
    def full(self) -> bool:
        """All ranks wait, all at the same gate."""
        return len(self._at) == self.world_size and not self.mismatch

    @property
    def mismatch(self) -> bool:
        """Two ranks wait at different gates: neither will ever be full."""
        return len({key for key, _ in self._at.values()}) > 1

    @property
    def present(self) -> tuple[int, ...]:
        """Ranks that wait, in order."""
        return tuple(sorted(self._at))

    @property
    def missing(self) -> tuple[int, ...]:
        """Ranks that are not at any gate, in order."""
        return tuple(rank for rank in range(self.world_size) if rank not in self._at)

    def where(self) -> dict[str, list[int]]:
        """Gate → the ranks that wait there, for an error's text."""
        places: dict[str, list[int]] = {}
        for rank in self.present:
            places.setdefault(str(self._at[rank][0]), []).append(rank)
        return places

    def take(self) -> tuple[GateKey, dict[int, Report]]:
        """The gate and the reports of a full roll call, by rank; the call is empty afterwards."""
        assert self.full, f"a roll call was taken that waits for ranks {self.missing}"
        gathered, self._at = self._at, {}
        return gathered[0][0], {rank: gathered[rank][1] for rank in sorted(gathered)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An order that ranks are carrying out while all of them wait at a gate.

    Args:
        what: its name, for an error's text.
        ranks: who was asked.
        answered: who is done with it; grows while it is looked at.
        outer: the gate at which all wait.
    """

    what: str
    ranks: Collection[int]
    answered: Collection[int]
    outer: GateKey

    def left(self, rank: int) -> str | None:
        """Where a rank is that takes no part in it any more, or never did; None if it is in the middle of it."""
        if rank not in self.ranks:
            return str(self.outer)
        return f"the end of {self.what}" if rank in self.answered else None


def parted(call: RollCall[Report], asked: Asked | None, finished: Collection[int]) -> dict[str, list[int]] | None:
    """Where the ranks are, if they can't ever meet again; else None.

    Args:
        call: who waits at which gate.
        asked: the innermost order that is being carried out.
        finished: ranks whose training has ended.

    Returns:
        Place → its ranks: gates, then the places of those that will come to none.
    """
    gone: dict[str, list[int]] = {}
    busy = []
    for rank in call.missing:
        place = "the end of training" if rank in finished else None if asked is None else asked.left(rank)
        if place is None:
            busy.append(rank)
        else:
            gone.setdefault(place, []).append(rank)
    unanswered = asked is not None and any(rank in finished and asked.left(rank) is None for rank in call.missing)
    if not (call.mismatch or (call.present and gone) or unanswered):
        return None
    inside = {asked.what: busy} if asked is not None and unanswered and busy else {}
    return call.where() | inside | gone


class Observations(Generic[Report]):
    """Watched firings, until all ranks have reported each.

    Args:
        world_size: how many ranks report.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.dropped = 0  # firings that some rank never reported: its box was full, or its data shorter
        self._open: dict[tuple[str, str, int], dict[int, dict[int, Report]]] = {}
        self._told: dict[tuple[str, str, int], int] = {}  # the highest count of which all have reported

    def regroup(self, world_size: int) -> None:
        """Ranks go back and report once more: what was not complete begins anew, what was stays told."""
        self.world_size = world_size
        self._open.clear()

    @property
    def incomplete(self) -> int:
        """Firings that some rank has not reported yet; once all ranks have ended, it never will."""
        return sum(len(counts) for counts in self._open.values())

    def report(self, rank: int, key: GateKey, report: Report) -> Mapping[int, Report] | None:
        """Take one rank's report.

        Returns:
            All ranks' reports if this was the last one missing, else None.
        """
        if key.count <= self._told.get((key.engine, key.event, key.visit), 0):
            return None  # from ranks that went back after a fault
        counts = self._open.setdefault((key.engine, key.event, key.visit), {})
        reports = counts.setdefault(key.count, {})
        reports[rank] = report
        if len(reports) < self.world_size:
            return None
        for count in [known for known in counts if known < key.count]:
            del counts[count]  # every rank reports in order, so these will never be complete
            self.dropped += 1
        del counts[key.count]
        self._told[key.engine, key.event, key.visit] = key.count
        if not counts:
            del self._open[key.engine, key.event, key.visit]
        return {known: reports[known] for known in sorted(reports)}
