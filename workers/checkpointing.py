"""What of a rank goes into a checkpoint, and how it comes back: state, engines, cursors, random numbers.

`saving.py` calls this at gates, the session when it joins; how bytes are laid out is in `shards.py`.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch

from workers.apart import begin_as_stranger, check_places, fitting, stateful_data
from workers.buckets import Layout
from workers.building import fingerprint_of
from workers.data.loader import GlobalLoader
from workers.errors import ProgramError, UnreadableError
from workers.failpoints import failpoint
from workers.locations import storage_at
from workers.optimizers import check_optimizer, parameters_of
from workers.parcels import TRAINER, LoadPoint
from workers.program import Program, Stateful
from workers.rng import capture_rng, restore_rng
from workers.sharded import shares_in
from workers.shards import Shards, load_state, read_rank_file, read_structure
from workers.worker import Worker

__all__ = ["cursor_of", "restore", "shards_of"]

AS_SAVED = "build the program as it was when that was saved, or give the run another name to start afresh"
FITTING = (
    "give what is new in it an entry of its own, leave {name!r} out of start_from.state, or export it and load what "
    "fits in build: see fine-tuning in orchestrator/README.md"
)


def shards_of(worker: Worker, program: Program) -> Shards:
    """The state of this rank as it is now; its tensors are the living ones until they are frozen."""
    worker.models.share_buffers()
    shared = {name: entry.state_dict() for name, entry in program.state.items()}
    own = {
        "engines": {name: engine.state_dict() for name, engine in program.engines.items()},
        "data": {name: data.state_dict() for name, data in stateful_data(program).items()},
        "rng": capture_rng(worker.device),
        "samples": worker.samples,
        "layouts": worker.models.layouts(),
    }
    if worker.rank == 0:
        own["parameters"] = parameters_of(program)
    return Shards(shared, own, worker.rank)


def cursor_of(program: Program) -> tuple[dict[str, int], dict[str, Any]]:
    """Where the trainer's data stands, and its fingerprint; both empty if it has no global order."""
    data = program.data.get(TRAINER)
    if not isinstance(data, GlobalLoader):
        return {}, {}
    iteration = program.engines[TRAINER].state.iteration
    return {"seed": data.batches.seed, "position": data.position(iteration)}, fingerprint_of(program)


def restore(worker: Worker, program: Program, point: LoadPoint) -> list[Layout | None]:
    """Take up a checkpoint, whatever the world size was when it was made.

    Args:
        worker: this rank.
        program: what takes it up.
        point: which checkpoint, and whether all of it or some entries of its state.

    Returns:
        The buckets of the models' wrappers when all of it was saved; none for some entries.

    Raises:
        ProgramError: the program has a state entry or engine that the checkpoint does not know, or data whose place
            belongs to another world size.
        UnreadableError: it can't be read here.
    """
    storage = storage_at(point.url)
    if point.entries is not None:
        _restore_entries(program, point, point.entries)
        return []
    stranger = worker.rank >= point.world_size  # this rank did not exist when the checkpoint was made
    with _readable(point.url):
        own = read_rank_file(storage, 0 if stranger else worker.rank)
        shared = load_state(storage, program.state.__contains__, shares_in(program.state))
        held = read_structure(storage)
    failpoint("load.read", worker.rank)
    _check_names("state", program.state, held)
    _check_names("engine", program.engines, own["engines"])
    check_places(program, own, point.world_size, worker.world_size)
    for name, entry in program.state.items():
        _take_up(name, entry, shared[name], point, own.get("parameters", {}).get(name), program)
    for name, engine in program.engines.items():
        engine.load_state_dict(fitting(own["engines"][name], engine.attached) if stranger else own["engines"][name])
    for name, data in stateful_data(program).items():
        if name in own["data"] and point.world_size == worker.world_size:
            data.load_state_dict(own["data"][name])
    if stranger:
        begin_as_stranger(worker, program)
    else:
        worker.samples = own["samples"]
        restore_rng(own["rng"], worker.device)
    failpoint("load.restored", worker.rank)
    return cast("list[Layout | None]", own.get("layouts", []))


@contextmanager
def _readable(url: str) -> Iterator[None]:
    """What can't be read of a checkpoint that the driver verified is no fault of the user's code.

    Raises:
        UnreadableError: something can't.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnreadableError(f"checkpoint {url}: can't be read: {type(error).__name__}: {why}") from error


def _take_up(name: str, entry: Stateful, state: Any, point: LoadPoint, parameters: Any, program: Program) -> None:
    """Whatever an entry has against its state, the checkpoint and the entry are named."""
    optimizer: object = entry
    if isinstance(optimizer, torch.optim.Optimizer):
        check_optimizer(name, optimizer, state, parameters, parameters_of(program)[name])
    try:
        entry.load_state_dict(state)
    except Exception as error:
        mend = AS_SAVED if point.entries is None else FITTING.format(name=name)
        raise ProgramError(
            f"checkpoint: state {name!r}: expected what the program can take up, received what {point.url} holds, "
            f"and its load_state_dict raised {type(error).__name__}: {error}; {mend}"
        ) from error


def _restore_entries(program: Program, point: LoadPoint, entries: tuple[str, ...]) -> None:
    """Only some entries of the state: the rest of the program starts afresh."""
    storage, mend = storage_at(point.url), "leave it out of start_from.state"
    with _readable(point.url):
        held, states = read_structure(storage), load_state(storage, entries.__contains__, shares_in(program.state))
        parameters = read_rank_file(storage, 0).get("parameters", {})
    _check_names("state", entries, held, mend=mend)
    _check_names("state", entries, program.state, where="the program", mend=mend)
    for name, state in states.items():
        _take_up(name, program.state[name], state, point, parameters.get(name), program)


def _check_names(
    kind: str,
    wanted: Mapping[str, Any] | tuple[str, ...],
    held: Mapping[str, Any],
    *,
    where: str = "the checkpoint",
    mend: str = "give the run another name to start afresh",
) -> None:
    if missing := sorted(set(wanted) - set(held)):
        raise ProgramError(
            f"checkpoint: {kind} {', '.join(map(repr, missing))}: expected {where} to hold it, received "
            f"{', '.join(map(repr, sorted(held))) or 'none'}; {mend}"
        )
