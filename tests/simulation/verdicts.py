"""Whether a run ended as it may, given what went wrong in it; and whether it left anything."""

from __future__ import annotations

from typing import Any

from tests.simulation.faults import LOSSES, Strike
from tests.simulation.world import World

__all__ = ["judge"]

BEFORE_TRAINING = {"StartError", "WorkerLostError", "SystemFailure"}


def judge(world: World, ended: str, text: str, error: Any) -> None:
    """See that the end is one of those that what happened allows; a violation else."""
    oracle = world.oracle
    may, must = _ends(world)
    if must and ended not in must:
        oracle.violate(f"ended with {ended} ({text}), and had to with {' or '.join(sorted(must))}")
    if ended not in may | must:
        oracle.violate(f"ended with {ended}: {text}")
    if ended == "TrainingError" and not any(word in text for word in (*world.users, "went wrong")):
        oracle.violate(f"the error does not tell what the program raised ({world.users}): {text}")
    aloud = ended not in ("completed", "terminated", "RunInterrupted")
    if len(oracle.raised) > 1 or (aloud and not oracle.raised):
        oracle.violate(f"EXCEPTION_RAISED was fired for {oracle.raised}; the run ended with {ended}")
    if not world.stopped:
        oracle.violate("the group was not stopped")
    if alive := [rank.worker for rank in [*world.ranks.values(), *world.dead] if rank.alive and not rank.ended]:
        oracle.violate(f"workers {alive} are alive")
    oracle.check_checkpoints(world.disk)
    if ended in ("completed", "terminated") and oracle.like is not None and not _happened(world, "interrupt", "drain"):
        oracle.check_end()


def _ends(world: World) -> tuple[set[str], set[str]]:
    """Ends that may be, and those of which it must be one; none: any that may be."""
    happened = [strike for strike in world.strikes if strike.struck is not None]
    may = {"completed"} | ({"terminated"} if any("terminate" in rule.does for rule in world.config.rules) else set())
    losses = [strike for strike in happened if strike.kind in LOSSES or strike.kind in ("drain", "kill reserve")]
    if losses and not world.trains:
        may |= BEFORE_TRAINING
    if len(losses) >= 3 or _happened(world, "astray always"):
        may.add("RecoveryError")
    if losses and (world.starved or _struck_reserve(happened)):
        may.add("CapacityError")
    if _happened(world, "interrupt"):
        may |= {"RunInterrupted", "terminated"}
    if _happened(world, "drain"):  # of all that the run stands on
        may.add("RunInterrupted")
    if _happened(world, "stop now"):
        may.add("RunInterrupted")
    if _happened(world, "fence"):
        may.add("FencedError")
    if _happened(world, "call"):
        may.add("TrainingError")
    if _happened(world, "refuse", "stumble", "hang write"):
        may |= {"CheckpointError"}
    return may, {"TrainingError"} if world.users else set()


def _happened(world: World, *kinds: str) -> bool:
    return any(strike.kind in kinds and strike.struck is not None for strike in world.strikes)


def _struck_reserve(strikes: list[Strike]) -> bool:
    """Whether a worker hangs that has not come up yet: it is waited for, and then the run ends."""
    hangs = [strike for strike in strikes if strike.kind in ("silence", "zombie", "stick")]
    return any("came by start" in str(strike.struck) for strike in hangs)
