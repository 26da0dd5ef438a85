"""What dies with a rank: random numbers, engines with their metrics, its place in its data, what differs of its state.

It is a few kilobytes, which every snapshot tells the driver, so that the rank that comes instead begins with them.
Called by `snapshot.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from workers.apart import begin_as_stranger, check_places, fitting, spread_entries, stateful_data
from workers.copies import bytes_in
from workers.data.sources import HandedOut, RankBatches
from workers.inplace import Kind, buffers_of
from workers.program import Program
from workers.rng import capture_rng, restore_rng
from workers.worker import Worker

__all__ = ["iterators_of", "own_of", "put_back_own"]

LIMIT = 1 << 20  # bytes of tensors and arrays of the state that are told to the driver


def own_of(worker: Worker, program: Program, entries: Mapping[str, tuple[Kind, Any]]) -> dict[str, Any]:
    """What is not known to be equal on all ranks; its tensors are the living ones.

    Args:
        worker: this rank.
        program: its program.
        entries: by name, what of each entry of the state is copied.
    """
    engines = program.engines
    return {
        "world_size": worker.world_size,
        "engines": {name: engine.state_dict() for name, engine in engines.items()},
        "metrics": {name: _plain(engine.state.metrics) for name, engine in engines.items()},
        "data": {name: data.state_dict() for name, data in stateful_data(program).items()},
        "read": {name: data.read for name, data in iterators_of(program).items()},
        "passes": {name: data.began for name, data in _passes_of(program).items()},
        "samples": worker.samples,
        "batch_size": worker.batch_size,
        "apart": _apart(worker, program, entries),
        "rng": capture_rng(worker.device),  # last: a Stateful loader draws some if it is asked before it is read
    }


def put_back_own(
    worker: Worker, program: Program, own: dict[str, Any], *, metrics: Mapping[str, Any] | None, stranger: bool
) -> None:
    """Take all of it up but the state's entries. Random numbers come last: what takes up a state may draw some.

    Args:
        worker: this rank.
        program: its program; its engines do not run.
        own: what `own_of` gave, for keeps.
        metrics: instead of those in it.
        stranger: it is the donor's: this rank begins where that one is, with metrics and random numbers of its own.

    Raises:
        ProgramError: data keeps the place of a rank of another world size.
    """
    check_places(program, own, own["world_size"], worker.world_size, where="snapshot")
    for name, data in stateful_data(program).items():
        if name in own["data"] and not stranger:
            data.load_state_dict(own["data"][name])
    for name, iterator in iterators_of(program).items():
        iterator.go_to(own["read"][name])
        own["engines"][name]["data"] = {"read": own["read"][name]}  # so that the engine reads on where it stands
    for name, batches in _passes_of(program).items():
        batches.read_again(None if stranger else own["passes"][name])
    for name, engine in program.engines.items():
        engine.load_state_dict(fitting(own["engines"][name], engine.attached))
        engine.state.metrics.clear()
        engine.state.metrics.update((metrics or own["metrics"])[name])
    if stranger:
        begin_as_stranger(worker, program)
        return
    worker.samples, worker.batch_size = own["samples"], own["batch_size"]
    restore_rng(own["rng"], worker.device)


def iterators_of(program: Program) -> dict[str, HandedOut]:
    """Data that can be read only once."""
    sources: dict[str, object] = dict(program.data)
    return {name: data for name, data in sources.items() if isinstance(data, HandedOut)}


def _passes_of(program: Program) -> dict[str, RankBatches]:
    """Data that is read again from the beginning of the pass."""
    sources: dict[str, object] = dict(program.data)
    return {name: data for name, data in sources.items() if type(data) is RankBatches}


def _apart(worker: Worker, program: Program, entries: Mapping[str, tuple[Kind, Any]]) -> dict[str, Any]:
    """Entries, or buffers of them, that may differ between ranks: the small ones, as many as the limit allows.

    A newcomer has the others from its donor, as from a checkpoint, into which rank 0 writes its own.
    """
    found: list[tuple[int, str, Any]] = []
    for name in entries.keys() - spread_entries(worker, program):
        kind, state = entries[name]
        entry: object = program.state.get(name)
        if kind == "module" and isinstance(entry, nn.Module) and worker.models.hold(entry.parameters()):
            state = {"tensors": buffers_of(entry)}  # its parameters are equal: their gradients are averaged
        found.append((bytes_in(state), name, state))
    apart, size = {}, 0
    for more, name, state in sorted(found, key=lambda item: item[:2]):
        size += more
        if size > LIMIT:
            break
        apart[name] = state
    return apart


def _plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics that are numbers, texts or tensors."""
    return {name: value for name, value in metrics.items() if isinstance(value, int | float | str | torch.Tensor)}
