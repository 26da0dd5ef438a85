"""Activation checkpointing: parts of a model whose activations are computed again in the backward pass, not kept.

Nothing is renamed and no class changed, so a model's state is the same with and without. Used by `strategy.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from workers.errors import ProgramError

__all__ = ["recompute"]


def recompute(module: nn.Module, kinds: Sequence[type[nn.Module]]) -> None:
    """Have each part of these classes compute its activations anew in the backward pass.

    Args:
        module: the model.
        kinds: classes of its parts, such as the block of a transformer.

    Raises:
        ProgramError: the model has no such part.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
        >>> recompute(model, [nn.Linear])
        >>> list(model.state_dict())
        ['0.weight', '0.bias']
    """
    parts = [part for part in module.modules() if isinstance(part, tuple(kinds))]
    if not parts:
        raise ProgramError(
            "worker.prepare: activation_checkpointing: expected classes of parts of the model, received "
            f"{', '.join(kind.__name__ for kind in kinds)}, of which {type(module).__name__} has none; name those "
            "whose activations are large, such as the block of a transformer"
        )
    for part in parts:
        part.forward = _Recomputed(part.forward)


class _Recomputed:
    """A forward pass that is run again in the backward pass, with the same random numbers."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)
