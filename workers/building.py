"""From a `Build` order to a checked program: paths, environment, seeds, the user's `build(worker)`, the driver's gates.

Everything a rank does once, before it joins anybody. Called by the session.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from workers.data.loader import GlobalLoader
from workers.data.sources import NoPart, TorchBatches
from workers.devices import accelerator, choose, sight_of
from workers.errors import ProgramError
from workers.metrics.attach import AttachedMetric
from workers.metrics.pack import empty_copy
from workers.metrics.running import AttachedAverage
from workers.orders import Build
from workers.parcels import TRAINER
from workers.program import Program, check_program
from workers.rng import seed_rng
from workers.secrets import resolve
from workers.structure import DEPTH
from workers.worker import Worker

__all__ = ["build_program", "fingerprint_of", "make_worker", "metrics_of", "state_bytes"]

_logger = logging.getLogger(__name__)
_WHOLE = {BatchSampler, RandomSampler, SequentialSampler, type(None)}  # torch's samplers of all that there is


def make_worker(order: Build, *, lent: Sequence[str] | None = None, formed: bool = False) -> Worker:
    """Prepare the process for a job and make the `Worker` that `build` will receive.

    Args:
        order: what to build.
        lent: ids of the accelerators that this rank may use; None: nobody lends, so it takes what there is.
        formed: whether the process group is there already.
    """
    for root in reversed(order.roots):
        if root not in sys.path:
            sys.path.insert(0, root)
    importlib.invalidate_caches()
    if order.threads is not None:
        torch.set_num_threads(order.threads)
    begun = torch.cuda.is_initialized() or torch.xpu.is_initialized()  # type: ignore[no-untyped-call]
    # What a process sees can't be changed any more when its accelerators have been initialised.
    sight = sight_of(os.environ, lent or (), () if begun else order.membership.node_gpus)
    os.environ.update(sight.environment)
    worker = Worker(
        device=choose(accelerator(), lent, sight.number),
        config=resolve(order.config),
        seed=order.seed,
        membership=order.membership,
        datasets=_parts(order.datasets),
        formed=formed,
    )
    if worker.device.type not in ("cpu", "mps"):
        torch.accelerator.set_device_index(worker.device.index)  # per thread: this is the one that trains
    text = "rank %d computes on %s, with %d threads"
    _logger.info(text, order.membership.rank, worker.device, torch.get_num_threads())
    return worker


def build_program(order: Build, worker: Worker) -> Program:
    """Call the user's build function, with random numbers that are the same on every rank.

    Args:
        order: what to build.
        worker: what the function receives.

    Raises:
        ProgramError: the function can't be found, or does not return a program that these ranks can run together.
    """
    build, where = _build_function(order)
    seed_rng(order.seed)
    program = check_program(build(worker), where)
    if worker.world_size > 1:
        _check_prepared(program, worker, where)
        if worker.rank == 0:
            _tell_of_whole_data(program, worker)
    worker.program = program
    for engine in program.engines.values():
        engine.worker = worker  # for handlers that run on ranks and want more than the engine
        for attached in engine.attached.values():
            if isinstance(attached, AttachedMetric | AttachedAverage):
                attached.samples = lambda: worker.batch_size
            if isinstance(attached, AttachedMetric):
                attached.metric.to(worker.device)
                attached.shared = lambda: worker.world_size > 1
    return program


def metrics_of(program: Program) -> dict[str, dict[str, object]]:
    """Per engine, empty copies of the attached metrics."""
    return {
        name: {
            label: empty_copy(thing.metric)
            for label, thing in engine.attached.items()
            if isinstance(thing, AttachedMetric)
        }
        for name, engine in program.engines.items()
    }


def fingerprint_of(program: Program) -> dict[str, Any]:
    """What the trainer's data is; empty if it has no global order."""
    data = program.data.get(TRAINER)
    return dict(data.fingerprint()) if isinstance(data, GlobalLoader) else {}


def state_bytes(program: Program) -> dict[str, int]:
    """Bytes of tensors in every entry of the state, for the record."""
    return {name: _bytes_in(entry.state_dict()) for name, entry in program.state.items()}


def _check_prepared(program: Program, worker: Worker, where: str) -> None:
    """See that no model would be trained by every rank on its own, ever farther from the others'."""
    for name, entry in program.state.items():
        own = worker.models.unprepared(entry) if isinstance(entry, nn.Module) else None
        if own is not None:
            raise ProgramError(
                f"{where}: state[{name!r}]: expected a model that worker.prepare returned, which {worker.world_size} "
                f"ranks train as one, received {type(entry).__name__} with the trainable parameter {own!r} of its own; "
                "write model = worker.prepare(model), freeze it with requires_grad_(False), or leave it out of `state`"
            )


def _tell_of_whole_data(program: Program, worker: Worker) -> None:
    """Warn of loaders that give every rank all samples; a sampler that is not torch's own may share them out."""
    for name, data in program.data.items():
        if isinstance(data, DataLoader) and {type(data.sampler), type(data.batch_sampler)} <= _WHOLE:
            text = "data[%r]: every one of %d ranks reads all of it; use worker.loader, which gives each rank its share"
            _logger.warning(text, name, worker.world_size)


def _parts(datasets: Mapping[str, bytes]) -> dict[str, TorchBatches]:
    return {name: pickle.loads(pickled) if pickled else NoPart(name) for name, pickled in datasets.items()}


def _bytes_in(value: object, depth: int = DEPTH) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list) and depth:  # what is deeper can't be saved either
        return sum(_bytes_in(item, depth - 1) for item in value)
    return 0


def _build_function(order: Build) -> tuple[Callable[[Worker], object], str]:
    if isinstance(order.program, bytes):
        function = cast("Callable[[Worker], object]", pickle.loads(order.program))
        return function, f"{getattr(function, '__qualname__', 'build')}(worker)"
    module_name, _, attribute = order.program.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports is not
        raise ProgramError(
            f"program {order.program!r}: expected a module {error.name!r} on this rank, received none in "
            f"{', '.join(order.roots) or 'sys.path'}; install it there, or put the folder on shared storage"
        ) from None
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "write it there, or name another"
        raise ProgramError(
            f"program {order.program!r}: expected a function of the module {module_name}, received no {attribute!r} "
            f"there; {hint}"
        )
    function = getattr(module, attribute)
    if not callable(function):
        raise ProgramError(
            f"program {order.program!r}: expected a function build(worker), received {type(function).__name__}; name "
            "one that returns a Program"
        )
    return function, f"{order.program}(worker)"
