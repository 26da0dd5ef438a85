"""Learning rates of an optimizer: read them, set them, and find the optimizer that a handler names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.optim import Optimizer

from workers.engine import Engine

__all__ = ["found_rates", "optimizer_of", "rates_of", "scale_rates", "set_found", "set_rates"]

_found: WeakKeyDictionary[Optimizer, list[float]] = WeakKeyDictionary()  # by a search, for the schedule that begins


def found_rates(optimizer: Optimizer) -> list[float] | None:
    """The rates that a search has found for this optimizer in this process."""
    return _found.get(optimizer)


def set_found(optimizer: Optimizer, rate: float) -> None:
    """Set the rate that a search has found, also for the schedule that begins with it."""
    _found[optimizer] = [rate] * len(optimizer.param_groups)
    set_rates(optimizer, _found[optimizer])


def rates_of(optimizer: Optimizer) -> list[float]:
    """The learning rate of each parameter group."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def set_rates(optimizer: Optimizer, rates: Sequence[float]) -> None:
    """Set them; one that lives in a tensor stays there."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def scale_rates(worker: Any, name: str, factor: float, least: float) -> list[float]:
    """Multiply the learning rates of an optimizer of this rank's program; for `orchestrator.call`.

    Args:
        worker: of this rank.
        name: of the optimizer in `Program.state`.
        factor: what they are multiplied by.
        least: they do not fall below.

    Returns:
        The new ones.
    """
    optimizer = _in_state(worker, name)
    set_rates(optimizer, [max(rate * factor, least) for rate in rates_of(optimizer)])
    return rates_of(optimizer)


def optimizer_of(engine: Engine, optimizer: Optimizer | str) -> Optimizer:
    """The optimizer itself, or that of a name in the state of the engine's program.

    Raises:
        ValueError: there is none of that name.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    if engine.worker is None:
        raise ValueError(
            f"optimizer={optimizer!r}: expected an engine of a program, in whose state an optimizer has that name, "
            "received an engine alone; give the optimizer itself"
        )
    return _in_state(engine.worker, optimizer)


def _in_state(worker: Any, name: str) -> Optimizer:
    state = worker.program.state
    if not isinstance(state.get(name), Optimizer):
        there = ", ".join(repr(key) for key, entry in state.items() if isinstance(entry, Optimizer)) or "none"
        raise ValueError(
            f"optimizer={name!r}: expected the name of an optimizer in Program.state, received {name!r}; there are "
            f"{there}"
        )
    found: Optimizer = state[name]
    return found
