"""What of a rank goes into a checkpoint, and how it comes back: state, engines, cursors, random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers.errors import ProgramError
from workers.metrics.attach import AttachedMetric
from workers.parcels import LoadPoint
from workers.program import TRAINER, Program, Stateful
from workers.rng import capture_rng, restore_rng, seed_rng
from workers.shards import FrozenState, load_state, read_rank_file
from workers.worker import Worker

__all__ = ["freeze", "restore"]


def freeze(worker: Worker, program: Program) -> FrozenState:
    """The state of this rank as it is now; the tensors are the living ones: nothing may train until it is written."""
    shared = {name: entry.state_dict() for name, entry in program.state.items()}
    own = {
        "engines": {name: engine.state_dict() for name, engine in program.engines.items()},
        "data": {name: data.state_dict() for name, data in _stateful_data(program).items()},
        "rng": capture_rng(worker.device),
        "samples": worker.samples,
    }
    return FrozenState(shared, own, worker.rank)


def restore(worker: Worker, program: Program, point: LoadPoint) -> None:
    """Take up a checkpoint, whatever the world size was when it was made.

    Raises:
        ProgramError: the program has a state entry or engine that the checkpoint does not know, or data whose place
            belongs to another world size.
    """
    stranger = worker.rank >= point.world_size  # this rank did not exist when the checkpoint was made
    saved = read_rank_file(point.folder, 0 if stranger else worker.rank)
    shared = load_state(point.folder, saved["structure"])
    _check_names(program, shared, saved["own"])
    _check_places(program, saved["own"], point.world_size, worker.world_size)
    for name, entry in program.state.items():
        entry.load_state_dict(shared[name])
    own = saved["own"]
    for name, engine in program.engines.items():
        engine.load_state_dict(own["engines"][name])
    for name, data in _stateful_data(program).items():
        if name in own["data"] and point.world_size == worker.world_size:
            data.load_state_dict(own["data"][name])
    if stranger:
        _begin_as_stranger(worker, program)
    else:
        worker.samples = own["samples"]
        restore_rng(own["rng"], worker.device)


def _stateful_data(program: Program) -> dict[str, Stateful]:
    """Data that keeps a position of its own; a `GlobalLoader` does not: the engine's iteration is its position."""
    sources: dict[str, object] = dict(program.data)
    return {name: data for name, data in sources.items() if isinstance(data, Stateful)}


def _begin_as_stranger(worker: Worker, program: Program) -> None:
    """Rank 0's file gave the position; what rank 0 had seen and drawn is not this rank's."""
    for engine in program.engines.values():
        for thing in engine.attached.values():
            if isinstance(thing, AttachedMetric):
                thing.reset()
    seed_rng(worker.seed + program.engines["trainer"].state.iteration, worker.rank)


def _check_names(program: Program, shared: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    for kind, wanted, held in (
        ("state", set(program.state), set(shared)),
        ("engine", set(program.engines), set(own["engines"])),
    ):
        if missing := sorted(wanted - held):
            raise ProgramError(
                f"checkpoint: {kind} {', '.join(map(repr, missing))} of the program is not in it, which holds "
                f"{', '.join(map(repr, sorted(held))) or 'none'}; give the run another name to start afresh"
            )


def _check_places(program: Program, own: Mapping[str, Any], saved_by: int, world_size: int) -> None:
    """The place of a Stateful loader is that of one rank in its own part of the data; no other world has such parts."""
    for name in sorted(_stateful_data(program).keys() & own["data"].keys()):
        engine = own["engines"][name]
        begins_anew = engine["iteration"] == 0 or (name != TRAINER and engine["completed"])
        if saved_by != world_size and not begins_anew:
            raise ProgramError(
                f"checkpoint: data[{name!r}]: expected the world size at which it was saved, {saved_by}, received "
                f"{world_size}; a Stateful loader keeps the place of each rank in its own part of the data, which "
                f"can't be shared out anew: run with workers: {saved_by}, or give worker.loader a map-style data set"
            )
