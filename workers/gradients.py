"""Gradients at a snapshot: only those that no step has used yet are part of the state.

Between two iterations gradients usually lie about from the last step, and the next one clears them. But a program may
add them up over several iterations before it steps; then they are as much its state as its weights are.
Called by `snapshot.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from workers.inplace import InPlace
from workers.parcels import TRAINER
from workers.program import Program

__all__ = ["Gradients"]

_Saved = list[list[torch.Tensor | None]]  # by group and parameter


class Gradients:
    """The gradients of a program's optimizers.

    Args:
        program: the optimizers in its state tell of their steps from now on.
    """

    def __init__(self, program: Program) -> None:
        entries: dict[str, Any] = dict(program.state)
        self._optimizers = {name: entry for name, entry in entries.items() if isinstance(entry, Optimizer)}
        self._trainer = program.engines[TRAINER].state
        self._stepped: dict[str, int] = {}  # the iteration in which each has stepped last
        for name, optimizer in self._optimizers.items():
            optimizer.register_step_post_hook(self._note_step(name))

    def unused(self) -> dict[str, _Saved]:
        """Per optimizer the gradients that it has not used yet, if there are any: it did not step in this iteration."""
        found = {}
        for name, optimizer in self._optimizers.items():
            gradients = [[parameter.grad for parameter in group["params"]] for group in optimizer.param_groups]
            waiting = self._stepped.get(name) != self._trainer.iteration
            if waiting and any(gradient is not None for group in gradients for gradient in group):
                found[name] = gradients
        return found

    def clear(self, modules: Iterable[nn.Module]) -> None:
        """Clear all there are, in these modules too."""
        self._stepped.clear()
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        for module in modules:
            module.zero_grad(set_to_none=True)

    def put_back(self, name: str, saved: _Saved, in_place: InPlace) -> None:
        """Give an optimizer's parameters the gradients that it had not used."""
        for group, gradients in zip(self._optimizers[name].param_groups, saved, strict=True):
            for parameter, gradient in zip(group["params"], gradients, strict=True):
                parameter.grad = None if gradient is None else in_place.into(None, gradient)

    def _note_step(self, name: str) -> Any:
        def note(*_: object) -> None:
            self._stepped[name] = self._trainer.iteration

        return note
