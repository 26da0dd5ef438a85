"""From a `Build` order to a checked program: paths, environment, seeds, the user's `build(worker)`, the driver's gates.

Everything a rank does once, before it joins anybody. Called by the session.
"""

from __future__ import annotations

import difflib
import importlib
import pickle
import sys
from collections.abc import Callable, Mapping
from typing import cast

import torch

from workers.errors import ProgramError
from workers.metrics.attach import AttachedMetric
from workers.metrics.pack import empty_copy
from workers.orders import Build
from workers.program import Program, check_program
from workers.rng import seed_rng
from workers.worker import Worker

__all__ = ["build_program", "make_worker", "metrics_of", "state_bytes"]


def make_worker(order: Build) -> Worker:
    """Prepare the process for a job and make the `Worker` that `build` will receive."""
    for root in reversed(order.roots):
        if root not in sys.path:
            sys.path.insert(0, root)
    importlib.invalidate_caches()
    if order.threads is not None:
        torch.set_num_threads(order.threads)
    worker = Worker(config=order.config, seed=order.seed, membership=order.membership)
    if worker.device.type == "cuda":
        torch.cuda.set_device(worker.device)  # per thread: this is the one that trains
    return worker


def build_program(order: Build, worker: Worker) -> Program:
    """Call the user's build function, with random numbers that are the same on every rank.

    Args:
        order: what to build.
        worker: what the function receives.

    Raises:
        ProgramError: the function can't be found, or does not return a program that can be run.
    """
    build, where = _build_function(order)
    seed_rng(order.seed)
    program = check_program(build(worker), where)
    worker.program = program
    for engine in program.engines.values():
        engine.worker = worker  # for handlers that run on ranks and want more than the engine
        for attached in engine.attached.values():
            if isinstance(attached, AttachedMetric):
                attached.metric.to(worker.device)
                attached.samples = lambda: worker.batch_size
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


def state_bytes(program: Program) -> dict[str, int]:
    """Bytes of tensors in every entry of the state, for the record."""
    return {name: _bytes_in(entry.state_dict()) for name, entry in program.state.items()}


def _bytes_in(value: object) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(_bytes_in(item) for item in value.values())
    if isinstance(value, tuple | list):
        return sum(_bytes_in(item) for item in value)
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
