"""Steps that are taken to learn something and then undone: model, optimizer and random numbers are as they were before.

Used by the handlers that look for a learning rate or a batch size before training.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from workers.engine import Engine
from workers.events import Events
from workers.handlers.ranks import Ranks
from workers.parcels import TRAINER
from workers.rng import capture_rng, restore_rng

__all__ = ["BeforeTraining", "data_of", "state_of", "undone"]


class BeforeTraining:
    """A handler that looks when a run starts, before anything is trained."""

    _state: Mapping[str, Any] | None = None

    def attach(self, target: Engine | Ranks, *, state: Mapping[str, Any] | None = None) -> None:
        """Look when the run starts.

        Args:
            target: the orchestrator, or an engine.
            state: for an engine alone: what its steps change, by name, such as model and optimizer.
        """
        self._state = state
        if isinstance(target, Engine):
            target.add_phase_handler("metrics", Events.STARTED, self)
        else:
            target.listen(Events.STARTED, self, phase="metrics", blocking=True)

    def __call__(self, target: Engine | Ranks) -> None:
        """Look now."""
        raise NotImplementedError


def state_of(engine: Engine, state: Mapping[str, Any] | None, call: str) -> Mapping[str, Any]:
    """What a trial changes: that of the engine's program, or what was given for an engine alone.

    Raises:
        ValueError: there is neither.
    """
    if state is not None:
        return state
    if engine.worker is None or engine.worker.program is None:
        raise ValueError(
            f"{call}(state): expected what the steps change, which is put back afterwards, received nothing, and an "
            "engine without a program; write state={'model': model, 'optimizer': optimizer}"
        )
    found: Mapping[str, Any] = engine.worker.program.state
    return found


def data_of(engine: Engine, call: str) -> Any:
    """The data of the run that is about to begin; it must be such that it can be begun anew.

    Raises:
        ValueError: there is none, or it can be read only once.
    """
    worker = engine.worker
    data = engine.state.dataloader
    if data is None and worker is not None and worker.program is not None:
        data = worker.program.data.get(TRAINER)
    if data is None or iter(data) is data:
        what = "none" if data is None else f"an iterator ({type(data).__name__})"
        raise ValueError(
            f"{call}: expected data that can be read more than once, received {what}; give a loader, or a list of "
            "batches"
        )
    return data


@contextmanager
def undone(engine: Engine, state: Mapping[str, Any]) -> Iterator[Engine]:
    """Within this block another engine with the same process function may run; afterwards nothing has happened.

    Args:
        engine: whose steps are tried.
        state: what they change, by name.
    """
    worker = engine.worker
    device = torch.device("cpu") if worker is None else worker.device
    trial = Engine(engine.process_function)
    trial.worker = worker
    with ExitStack() as stack:
        stack.callback(restore_rng, capture_rng(device), device)
        for entry in state.values():
            stack.callback(_copy_of(entry))
        if worker is not None:
            stack.enter_context(worker.set_aside())
        yield trial
    gc.collect()


def _copy_of(entry: Any) -> Callable[[], None]:
    """Copy a state; what is returned puts it back."""
    if isinstance(entry, nn.Module):
        tensors = [*entry.parameters(), *entry.buffers()]
        copies = [tensor.detach().clone() for tensor in tensors]
        modes = [(part, part.training) for part in entry.modules()]

        def put_back() -> None:
            with torch.no_grad():
                for tensor, kept in zip(tensors, copies, strict=True):
                    tensor.copy_(kept)
            for part, training in modes:
                part.training = training
            entry.zero_grad(set_to_none=True)

        return put_back
    kept = copy.deepcopy(entry.state_dict())

    def take_up() -> None:
        entry.load_state_dict(kept)
        if isinstance(entry, Optimizer):
            entry.zero_grad(set_to_none=True)

    return take_up
