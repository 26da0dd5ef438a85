"""After a fault: whether to recover, to which snapshot, and who takes the places of the lost. Pure decisions.

The driver gathers the facts, asks here, and acts. How often a run may be recovered is in `budgets.py`; which error a
run ends with is in `verdict.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from orchestrator.budgets import Budgets, Charge, Progress, Stuck
from orchestrator.causes import Cause, cause_of
from orchestrator.errors import CapacityError, RankfireError, RecoveryError, name_ranks
from orchestrator.verdict import Facts, verdict
from workers.parcels import GateKey, SnapshotLabel

__all__ = ["Decision", "GoOn", "Placement", "Recover", "Stop", "choose_snapshot", "judge", "place_losses"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The run ends with this error."""

    error: RankfireError


@dataclass(frozen=True, slots=True, kw_only=True)
class Recover:
    """The run goes on in a new generation.

    Args:
        lost: rank → why it is gone; empty if ranks only lost contact with each other.
        causes: what the recovery was charged to, the worst first.
        pause: seconds to wait before it begins.
        story: what happened, in words.
    """

    lost: Mapping[int, Cause]
    causes: tuple[Cause, ...]
    pause: float
    story: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GoOn:
    """No rank is concerned: only these spares are gone."""

    spares: tuple[int, ...]


Decision = Stop | Recover | GoOn
_WORST_FIRST: tuple[Cause, ...] = ("oom", "hang", "crash", "preemption", "network")


def judge(
    facts: Facts,
    *,
    budgets: Budgets,
    progress: Progress,
    now: float,
    iteration: int | None,
    gate: GateKey | None = None,
    on_loss: Literal["recover", "stop"] = "recover",
    samples: Callable[[int], str] = lambda iteration: "",
) -> Decision:
    """Decide what a fault means for the run; to be asked once for each generation that ends.

    A user's exception ends it, and so does a checkpoint that ranks can't read: neither is ever tried again. Else the
    losses are charged, each cause once however many ranks it took; without a loss, a hang or broken contact is.

    Args:
        facts: of this generation alone, after all ranks had a moment to tell.
        budgets: are charged.
        progress: is told.
        now: seconds on a clock that never goes back.
        iteration: that was in progress, or had just been done at the gate; None: the ranks were joining.
        gate: at which the ranks stood.
        on_loss: what the job says.
        samples: iteration → what it was given, in words; asked for an iteration that fails each time.
    """
    if any(fault.kind != "communication" for fault in facts.faults):
        return Stop(error=verdict(facts))
    gone = {worker: text for worker, text in facts.lost.items() if worker not in facts.spares}
    if not gone and not facts.faults and not facts.standing:
        return GoOn(spares=tuple(sorted(facts.lost)))
    error = verdict(replace(facts, lost=gone))
    if on_loss == "stop":
        return Stop(error=error)
    lost = {
        facts.ranks.get(worker, worker): cause_of(text, draining=worker in facts.draining, hung=worker in facts.hung)
        for worker, text in sorted(gone.items(), key=lambda item: facts.ranks.get(item[0], item[0]))
    }
    without: Cause = "hang" if facts.standing else "network"
    causes = tuple(cause for cause in _WORST_FIRST if cause in lost.values()) or (without,)
    charges = [budgets.charge(cause, now) for cause in causes]
    stuck = None if causes == ("preemption",) else progress.failed(iteration, gate)
    refused = _refused(charges, stuck, budgets.window, str(error), samples)
    if refused is not None:
        return Stop(error=refused)
    pause = max(charge.pause for charge in charges)
    return Recover(lost=lost, causes=causes, pause=pause, story=str(error))


def _refused(
    charges: Sequence[Charge], stuck: Stuck | None, window: float, story: str, samples: Callable[[int], str]
) -> RecoveryError | None:
    """Why this recovery is one too many: the iteration that fails each time says most, so it comes first."""
    if stuck is not None and stuck.iteration is not None:
        given = samples(stuck.iteration) if stuck.gate is None else ""
        return RecoveryError.stuck(str(stuck), times=stuck.times, story=story, samples=given)
    for charge in charges:
        if charge.spent and charge.allowed is not None:
            return RecoveryError.spent(charge.cause, allowed=charge.allowed, seconds=window, story=story)
    return None if stuck is None else RecoveryError.no_progress(stuck.times, story=story)


def choose_snapshot(
    held: Mapping[int, Sequence[SnapshotLabel]],
    own: Mapping[int, Collection[SnapshotLabel]],
    lost: Collection[int],
) -> SnapshotLabel | None:
    """The snapshot to which all ranks go back.

    Args:
        held: surviving rank → what it holds, the oldest first.
        own: rank → the snapshots of which the driver has that rank's own part.
        lost: ranks that nobody holds now and somebody will; one that is given up is not among them.

    Returns:
        The newest one that can be had: all survivors hold it, and of each lost rank its own part is there. None: there
        is none, all go back to a checkpoint.

    Example:
        >>> old, new = SnapshotLabel(iteration=4), SnapshotLabel(iteration=8)
        >>> choose_snapshot({0: [old, new], 2: [old, new]}, {1: [old]}, lost=[1])
        SnapshotLabel(iteration=4, gate=None, order=0)
    """
    if not held:
        return None
    # All take their snapshots in the same order, so anyone's is everyone's; the lowest rank's, to be sure.
    common = [
        label
        for label in held[min(held)]
        if all(label in labels for labels in held.values()) and all(label in own.get(rank, ()) for rank in lost)
    ]
    return common[-1] if common else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Who holds which rank in the next generation.

    Args:
        workers: rank → worker; those in `start` are missing.
        start: ranks for which a new worker must be started.
        former: rank → the rank that its worker held before; spares are missing. Differs only where the world shrank.
        takes: rank → the rank of before whose place it is; those of a world that has grown are missing.
        world_size: of the next generation.
    """

    workers: Mapping[int, int]
    start: tuple[int, ...] = ()
    former: Mapping[int, int] = field(default_factory=dict)
    takes: Mapping[int, int] = field(default_factory=dict)
    world_size: int

    @property
    def newcomers(self) -> tuple[int, ...]:
        """Ranks whose worker was no rank before, in order."""
        return tuple(rank for rank in range(self.world_size) if rank not in self.former)


def place_losses(
    members: Mapping[int, int],
    lost: Collection[int],
    spares: Sequence[int],
    *,
    nodes: Mapping[int, str] | None = None,
    can_start: bool = True,
    minimum: int | None = None,
) -> Placement | Stop:
    """Fill the places of the lost: with spares, with new workers, or by closing the gaps.

    Args:
        members: rank → worker, all of the generation that ended.
        lost: ranks to fill.
        spares: workers that are built and wait, those to be taken first in front. Leave out those whose node goes.
        nodes: worker → node; a spare on the node of the lost rank is taken before others, so that neighbours stay.
        can_start: whether new workers can be had. Ask with True, and again with False when they did not come in time.
        minimum: ranks with which training may go on; None: only with all.

    Returns:
        The next generation. Ranks keep their numbers, unless gaps are closed: then they keep their order.

    Example:
        >>> place_losses({0: 10, 1: 11, 2: 12}, [1], [], can_start=False, minimum=2).workers
        {0: 10, 1: 12}
    """
    assert set(lost) <= members.keys(), f"lost {name_ranks(lost)} of a world of {len(members)}"
    survivors = {rank: worker for rank, worker in sorted(members.items()) if rank not in lost}
    taken = _match_spares({rank: members[rank] for rank in sorted(lost)}, spares, nodes or {})
    workers = {**survivors, **taken}
    open_places = tuple(rank for rank in sorted(members) if rank not in workers)
    world = len(members)
    if not open_places or can_start:
        kept = {rank: rank for rank in survivors}
        takes = {rank: rank for rank in sorted(members)}
        return Placement(workers=_in_order(workers), start=open_places, former=kept, takes=takes, world_size=world)
    if minimum is None or len(workers) < max(minimum, 1):
        least = "" if minimum is None else f", and {len(workers)} of at least {minimum} left"
        return Stop(
            error=CapacityError.of(
                asked=f"a new worker for {name_ranks(open_places)}",
                there=f"none in time{least}",
                mend="add nodes, or let fewer ranks go on (workers.min); the same command goes on from the newest "
                "checkpoint",
            )
        )
    numbers = {old: new for new, old in enumerate(sorted(workers))}
    return Placement(
        workers={numbers[old]: workers[old] for old in sorted(workers)},
        former={numbers[old]: old for old in survivors},
        takes={new: old for old, new in numbers.items()},
        world_size=len(workers),
    )


def _match_spares(lost: Mapping[int, int], spares: Sequence[int], nodes: Mapping[int, str]) -> dict[int, int]:
    """Rank → spare: first those on the lost rank's own node, then whoever is next."""
    free, taken = list(spares), {}
    for near in (True, False):
        for rank, gone in lost.items():
            fit = [spare for spare in free if not near or (gone in nodes and nodes.get(spare) == nodes[gone])]
            if rank not in taken and fit:
                taken[rank] = fit[0]
                free.remove(fit[0])
    return taken


def _in_order(workers: Mapping[int, int]) -> dict[int, int]:
    return {rank: workers[rank] for rank in sorted(workers)}
