"""From what ranks reported to the one error that ends a run: whose fault it was, said once, with the ranks. Pure.

How failures of many ranks are grouped and worded is here too, for whoever asked the ranks for something. The loop
gathers the facts and asks for the verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from orchestrator.causes import cause_of
from orchestrator.cluster_events import WorkerLost
from orchestrator.errors import (
    CheckpointError,
    RankfireError,
    SystemFailure,
    TrainingError,
    WorkerLostError,
    name_ranks,
)
from workers.errors import ProgramError
from workers.messages import Fault
from workers.parcels import Failure
from workers.rank import Place

__all__ = ["Facts", "by_failure", "of_repetition", "tell_failures", "verdict"]


@dataclass(slots=True, kw_only=True)
class Facts:
    """What is known when a run ends badly.

    Args:
        places: worker → where it runs.
        ranks: worker → its rank.
        building: workers that are in the user's `build`.
        phases: worker → what it was doing when last heard of.
        faults: in the order in which they came.
        lost: worker → how the loss was seen.
        hung: lost workers that were ended because they stood still.
        standing: that ranks stand still and nobody could be named for it, in words.
        draining: workers on nodes that the cluster has announced to take away.
        spares: workers that hold no rank of this generation.
    """

    places: dict[int, Place] = field(default_factory=dict)
    ranks: dict[int, int] = field(default_factory=dict)
    building: set[int] = field(default_factory=set)
    phases: dict[int, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    lost: dict[int, str] = field(default_factory=dict)
    hung: set[int] = field(default_factory=set)
    standing: str = ""
    draining: set[int] = field(default_factory=set)
    spares: set[int] = field(default_factory=set)

    def silent(self, workers: int) -> bool:
        """Whether some worker has neither failed nor been lost yet."""
        return len(self._ended()) < workers

    def still_building(self) -> bool:
        """Whether some worker may yet fail in the same `build`."""
        return bool(self.building - self._ended())

    def lose(self, which: Callable[[Fault], bool], why: str = "") -> None:
        """Whoever told of such a fault counts as lost, with its words.

        Args:
            which: tells whether a fault is one of these.
            why: is put before its words.
        """
        for fault in [fault for fault in self.faults if which(fault)]:
            place = fault.failure.place
            self.faults.remove(fault)
            self.lost[fault.worker] = f"{why}{fault.failure}" + ("" if place is None else f" ({place})")

    def loss_of(self, worker: int) -> WorkerLost:
        """What is known of a lost worker's end, as it is told and put on record."""
        text, place = self.lost[worker], self.places.get(worker)
        return WorkerLost(
            rank=None if worker in self.spares else self.ranks.get(worker),
            cause=cause_of(text, draining=worker in self.draining, hung=worker in self.hung),
            text=text,
            pid=None if place is None else place.pid,
            node=None if place is None else place.node,
            host=None if place is None else place.host,
        )

    def _ended(self) -> set[int]:
        return {fault.worker for fault in self.faults} | self.lost.keys()


def verdict(facts: Facts) -> RankfireError:
    """The error to end with: a user's exception, else a checkpoint that ranks can't read, else a lost worker.

    If there is none of these, ranks wait for each other, or collectives broke.
    """
    users = [fault for fault in facts.faults if fault.kind in ("user", "memory")]
    if users:
        return _of_user(users)
    if unread := {fault.rank: fault.failure for fault in facts.faults if fault.kind == "system"}:
        return _of_reading(unread)
    if facts.lost:
        return _of_loss(facts)
    if facts.standing:
        return SystemFailure(facts.standing)
    return _of_talk(facts)


def by_failure(failures: Mapping[int, Failure]) -> list[tuple[list[int], Failure]]:
    """Group ranks that failed alike: same type, same text.

    Args:
        failures: rank → what it raised.

    Returns:
        Groups in the order in which their first member came: ranks in order, and the first one's failure.

    Example:
        >>> no, disk = (Failure(type_name="ValueError", text=text, traceback="") for text in ("no", "disk full"))
        >>> [(ranks, failure.text) for ranks, failure in by_failure({0: no, 2: disk, 1: no})]
        [([0, 1], 'no'), ([2], 'disk full')]
    """
    groups: dict[tuple[str, str], tuple[list[int], Failure]] = {}
    for rank, failure in failures.items():
        ranks, _ = groups.setdefault((failure.type_name, failure.text), ([], failure))
        ranks.append(rank)
    return [(sorted(ranks), failure) for ranks, failure in groups.values()]


def tell_failures(failures: Mapping[int, Failure]) -> str:
    """Say which ranks raised what and where, each failure once: `ranks 0-1 raised ValueError: no (train.py:28)`."""
    return "; ".join(
        f"{name_ranks(ranks)} raised {failure}" + (f" ({failure.place})" if failure.place else "")
        for ranks, failure in by_failure(failures)
    )


def of_repetition(what: str, failures: Mapping[int, Failure]) -> TrainingError:
    """The error to end with where ranks went back, and an order that had gone well there failed when it was repeated.

    Args:
        what: the order, in words.
        failures: rank → what it raised.
    """
    ranks, first = by_failure(failures)[0]
    text = f"{what}, carried out again after a fault: {tell_failures(failures)}"
    return TrainingError(text, ranks=ranks, traceback=first.traceback)


def _of_user(faults: list[Fault]) -> TrainingError:
    """All exceptions, each with the ranks that raised it; the first one's ranks and traceback go with the error."""
    failures = {fault.rank: fault.failure for fault in faults}
    ranks, first = by_failure(failures)[0]
    refusal = all(failure.type_name == ProgramError.__name__ for failure in failures.values())
    return TrainingError(tell_failures(failures), ranks=ranks, traceback=first.traceback, refusal=refusal)


def _of_reading(failures: Mapping[int, Failure]) -> CheckpointError:
    told = "; ".join(f"{failure.text} (on {name_ranks(ranks)})" for ranks, failure in by_failure(failures))
    return CheckpointError(told)


def _of_loss(facts: Facts) -> RankfireError:
    worker = min(facts.lost, key=lambda lost: facts.ranks.get(lost, lost))
    place = facts.places.get(worker)
    error = WorkerLostError.of(
        facts.ranks.get(worker, worker),
        pid=None if place is None else place.pid,
        node="unknown" if place is None else f"{place.node[:12]} ({place.host})",
        cause=facts.lost[worker],
    )
    others = sorted(facts.ranks.get(lost, lost) for lost in facts.lost if lost != worker)
    return WorkerLostError(f"{error}; lost as well: {name_ranks(others)}") if others else error


def _of_talk(facts: Facts) -> SystemFailure:
    told = "; ".join(
        f"rank {fault.rank} ({fault.phase}, iteration {fault.iteration}): {fault.failure}" for fault in facts.faults
    )
    failed = {fault.worker for fault in facts.faults}
    silent = "; ".join(
        f"rank {facts.ranks.get(worker, worker)} was {phase}"
        for worker, phase in sorted(facts.phases.items())
        if worker not in failed
    )
    return SystemFailure(f"ranks lost contact with each other: {told}{'; ' if silent else ''}{silent}")
