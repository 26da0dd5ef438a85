"""What ranks have in common and what each has for itself; and a rank that comes new, for which nobody saved anything.

Both ways to take up a state ask here: a checkpoint (`checkpointing.py`) and a snapshot in memory (`own.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from workers.errors import ProgramError
from workers.metrics.attach import AttachedMetric
from workers.metrics.running import AttachedAverage
from workers.parcels import TRAINER
from workers.program import Program, Stateful
from workers.rng import seed_rng
from workers.worker import Worker

__all__ = ["begin_as_stranger", "check_places", "fitting", "spread_entries", "stateful_data"]


def spread_entries(worker: Worker, program: Program) -> tuple[str, ...]:
    """Entries of the state that are known to be equal on all ranks, so that each rank may write a part of them.

    Prepared models are, since gradients are averaged, if they have no buffers or DDP broadcasts those; so is an
    optimizer all of whose parameters are in prepared models. Of all else it is not known: rank 0 writes it.
    """
    return tuple(name for name, entry in program.state.items() if _equal(worker, entry))


def stateful_data(program: Program) -> dict[str, Stateful]:
    """Data that keeps a position of its own; a `GlobalLoader` does not: the engine's iteration is its position."""
    sources: dict[str, object] = dict(program.data)
    return {name: data for name, data in sources.items() if isinstance(data, Stateful)}


def check_places(
    program: Program, own: Mapping[str, Any], saved_by: int, world_size: int, *, where: str = "checkpoint"
) -> None:
    """The place of a Stateful loader is that of one rank in its own part of the data; no other world has such parts."""
    for name in sorted(stateful_data(program).keys() & own["data"].keys()):
        engine = own["engines"][name]
        begins_anew = engine["iteration"] == 0 or (name != TRAINER and engine["completed"])
        if saved_by != world_size and not begins_anew:
            raise ProgramError(
                f"{where}: data[{name!r}]: expected the world size at which it was saved, {saved_by}, received "
                f"{world_size}; a Stateful loader keeps the place of each rank in its own part of the data, which "
                f"can't be shared out anew: run with workers: {saved_by}, or give worker.loader a map-style data set"
            )


def fitting(saved: Mapping[str, Any], attached: Mapping[str, Any]) -> dict[str, Any]:
    """Another rank's state of an engine, for one that may have other things attached: handlers of one rank alone."""
    own = {name: thing.state_dict() for name, thing in attached.items() if isinstance(thing, Stateful)}
    return {**saved, "attached": {name: saved["attached"].get(name, state) for name, state in own.items()}}


def begin_as_stranger(worker: Worker, program: Program) -> None:
    """Another rank gave the position; what that one had seen and drawn is not this rank's."""
    for engine in program.engines.values():
        for thing in engine.attached.values():
            if isinstance(thing, AttachedMetric | AttachedAverage):
                thing.reset()
    seed_rng(worker.seed + program.engines[TRAINER].state.iteration, worker.rank)


def _equal(worker: Worker, entry: object) -> bool:
    if isinstance(entry, torch.optim.Optimizer):
        return worker.models.hold(parameter for group in entry.param_groups for parameter in group["params"])
    return isinstance(entry, torch.nn.Module) and worker.models.equal(entry)
