"""One rank's metrics as values that can travel: states of torchmetrics, and plain numbers with their weights.

Nothing is reduced here: merging the ranks' packs is the driver's work (`orchestrator/reduce.py`).
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from workers.parcels import MetricPack, Number

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["empty_copy", "metrics_in", "pack_metric", "pack_numbers"]

MAX_NUMBERS = 64  # scalar leaves of an output that are looked at; more is data, not numbers


def pack_metric(metric: Metric) -> MetricPack:
    """Copy a metric's states to the CPU, with those of the metrics inside it (wrappers, sums of metrics).

    Args:
        metric: any torchmetrics metric.

    Returns:
        module path → ({state name: tensor, or list of tensors}, number of updates).
    """
    parts: dict[str, tuple[Mapping[str, object], int]] = {}
    for path, module in metrics_in(metric):
        states = {name: _to_cpu(getattr(module, name)) for name in module._defaults}
        parts[path] = (states, int(module._update_count))
    return MetricPack(parts=parts)


def metrics_in(metric: Metric) -> list[tuple[str, Metric]]:
    """A metric and the metrics inside it, with their module paths; its own path is empty."""
    import torchmetrics  # here, not above: a rank without metrics starts faster

    return [(path, module) for path, module in metric.named_modules() if isinstance(module, torchmetrics.Metric)]


def empty_copy(metric: Metric) -> Metric:
    """A copy on the CPU without data: what the driver fills with merged states and computes."""
    copy = metric.clone().to("cpu")
    copy.reset()
    return copy


def pack_numbers(values: object, count: float = 1.0, *, on_cpu: bool = False) -> dict[str, Number]:
    """The scalar leaves of an output or of `state.metrics`, by their path.

    Args:
        values: a number, a tensor with one element, or a (nested) mapping, tuple or list of these; others are left out.
        count: weight of the numbers in a mean: how many samples they stand for.
        on_cpu: leave out tensors on other devices, which could only be read by waiting for the device.

    Example:
        >>> pack_numbers({"loss": 0.5, "logits": "text"})
        {'loss': Number(value=0.5, count=1.0, reduce='mean')}
    """
    packed: dict[str, Number] = {}
    _collect(values, "", count, on_cpu, packed)
    return packed


def _collect(value: object, path: str, count: float, on_cpu: bool, packed: dict[str, Number]) -> None:
    if len(packed) >= MAX_NUMBERS:
        return
    if isinstance(value, Number):
        packed[path or "output"] = value
    elif isinstance(value, torch.Tensor):
        if value.numel() == 1 and not value.is_complex() and (value.device.type == "cpu" or not on_cpu):
            packed[path or "output"] = Number(value=float(value.detach()), count=count)
    elif isinstance(value, numbers.Real):  # bool too: the share of ranks, or samples, for which it holds
        packed[path or "output"] = Number(value=float(value), count=count)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _collect(item, f"{path}/{key}" if path else str(key), count, on_cpu, packed)
    elif isinstance(value, tuple | list) and len(value) <= MAX_NUMBERS:
        for index, item in enumerate(value):
            _collect(item, f"{path}/{index}" if path else str(index), count, on_cpu, packed)


def _to_cpu(state: object) -> object:
    """Copies, so that the next update can't change what is on its way."""
    if isinstance(state, torch.Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, list):
        return [item.detach().cpu() if isinstance(item, torch.Tensor) else item for item in state]
    return state
