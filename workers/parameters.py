"""The tensors that training changes, each with a name that a user knows. Read by the handlers that look at them.

A name begins with that of the entry in `Program.state`: `model.fc.weight`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from workers.strategy import DataParallel

__all__ = ["named_optimizer_states", "named_parameters"]


def named_parameters(models: DataParallel, state: Mapping[str, object]) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of the prepared models that train, in the same order on every rank.

    Those that DistributedDataParallel was told to ignore are left out: they are each rank's own.

    Args:
        models: of this rank.
        state: the program's, for the names.
    """
    for module in models.trained:
        entries = (name for name, held in state.items() if getattr(held, "__dict__", None) is module.__dict__)
        entry = next(entries, type(module).__name__)
        ignored = getattr(module, "_ddp_params_and_buffers_to_ignore", ())
        for name, parameter in module.named_parameters():
            if name not in ignored:
                yield f"{entry}.{name}", parameter


def named_optimizer_states(models: DataParallel, state: Mapping[str, object]) -> Iterator[tuple[str, torch.Tensor]]:
    """What the optimizers of those models remember, in the same order on every rank.

    Optimizers that share their state out over the ranks (ZeroRedundancyOptimizer) are left out.

    Args:
        models: of this rank.
        state: the program's, which holds the optimizers.
    """
    for entry, optimizer in state.items():
        if not isinstance(optimizer, torch.optim.Optimizer) or hasattr(optimizer, "consolidate_state_dict"):
            continue
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if not models.hold(parameters):
            continue
        for number, parameter in enumerate(parameters):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor | float):
                    yield f"{entry}.state[{number}].{key}", torch.as_tensor(value)
