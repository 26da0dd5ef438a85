"""One rank's metrics as values that can travel: states of torchmetrics, and plain numbers with their weights.

Nothing is reduced here: merging the ranks' packs is the driver's work (`orchestrator/reduce.py`).
"""

from __future__ import annotations

import contextlib
import itertools
import numbers
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from workers.parcels import MetricPack, Number

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["empty_copy", "metrics_in", "pack_metric", "pack_numbers"]

MAX_NUMBERS = 64  # scalar leaves of an output that are taken; more is data, not numbers
MAX_LOOKED = 1024  # things in an output that are looked at for them
MAX_DEPTH = 8  # containers in containers


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
    for path, value in itertools.islice(_walk(values, "", 0), MAX_LOOKED):
        number = _number(value, count, on_cpu)
        if number is not None:
            packed[path or "output"] = number
            if len(packed) == MAX_NUMBERS:
                break
    return packed


def _walk(value: object, path: str, depth: int) -> Iterator[tuple[str, object]]:
    """Everything in a nest of mappings, tuples and lists, with its path; a nest may contain itself."""
    yield path, value
    items: Iterable[tuple[object, object]] = ()
    if depth < MAX_DEPTH and isinstance(value, Mapping):
        items = value.items()
    elif depth < MAX_DEPTH and isinstance(value, tuple | list) and len(value) <= MAX_NUMBERS:
        items = enumerate(value)
    for key, item in items:
        yield from _walk(item, f"{path}/{key}" if path else str(key), depth + 1)


def _number(value: object, count: float, on_cpu: bool) -> Number | None:
    if isinstance(value, Number):
        return value
    if isinstance(value, torch.Tensor):
        if value.numel() == 1 and not value.is_complex() and (value.device.type == "cpu" or not on_cpu):
            return Number(value=float(value.detach()), count=count)
    elif isinstance(value, numbers.Real):  # bool too: the share of ranks, or samples, for which it holds
        with contextlib.suppress(OverflowError):  # a whole number may be larger than any float
            return Number(value=float(value), count=count)
    return None


def _to_cpu(state: object) -> object:
    """Copies, so that the next update can't change what is on its way."""
    if isinstance(state, torch.Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, list):
        return [item.detach().cpu() if isinstance(item, torch.Tensor) else item for item in state]
    return state
