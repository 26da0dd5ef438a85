"""Norms of gradients and parameters, as metrics. Nobody waits for the device before the metrics are told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from workers.engine import Engine
from workers.events import Events
from workers.handlers.ranks import Ranks, interval
from workers.parameters import named_parameters

__all__ = ["Norms"]


class Norms:
    """The norm of all gradients, and of all parameters, in `state.metrics` as "gradient_norm" and "parameter_norm".

    Gradients are looked at behind the step, so clear them before the backward pass, not behind the optimizer's step.

    Args:
        every: iterations between two looks.
        gradients: whether to look at gradients.
        parameters: whether to look at parameters.
        models: those that are looked at; default: the prepared models that train.

    Raises:
        ValueError: `every` is no such number, or there are no models.

    Example:
        >>> orchestrator.attach(Norms(every=50))  # doctest: +SKIP
    """

    def __init__(
        self,
        every: int = 10,
        *,
        gradients: bool = True,
        parameters: bool = True,
        models: Iterable[nn.Module] | None = None,
    ) -> None:
        self.every = interval("Norms", every)
        self.gradients = gradients
        self.parameters = parameters
        self.models = None if models is None else list(models)

    def attach(self, target: Engine | Ranks) -> None:
        """Look from now on; at the orchestrator: on every rank, since parts of a model may lie on each."""
        if isinstance(target, Engine):
            target.add_phase_handler("metrics", Events.ITERATION_COMPLETED(every=self.every), self)
        else:
            target.send(self)

    def __call__(self, engine: Engine) -> None:
        """Look now."""
        trained = [parameter for parameter in self._of(engine) if parameter.requires_grad]
        metrics = engine.state.metrics
        if self.gradients and (found := [p.grad for p in trained if p.grad is not None]):
            metrics["gradient_norm"] = _norm(found)
        if self.parameters and trained:
            metrics["parameter_norm"] = _norm([parameter.detach() for parameter in trained])

    def _of(self, engine: Engine) -> Iterable[nn.Parameter]:
        if self.models is not None:
            return [parameter for model in self.models for parameter in model.parameters()]
        if engine.worker is None:
            raise ValueError(
                "Norms(models): expected models, or an engine with a worker that has prepared some, received an engine "
                "alone; write Norms(models=[model])"
            )
        return [parameter for _, parameter in named_parameters(engine.worker.models, {})]


def _norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    norm: Any = nn.utils.get_total_norm(tensors)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # type: ignore[no-any-return]  # of shards
