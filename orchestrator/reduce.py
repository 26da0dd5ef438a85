"""From the ranks' packs to one value: what a single process would have computed on the same data.

States of torchmetrics are stacked and reduced by each state's own rule, then computed once, here; plain numbers by mean
(weighted by their counts), sum, min or max. The metrics' own cross-rank merge is not used: it is wrong for means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat, dim_zero_max, dim_zero_mean, dim_zero_min, dim_zero_sum

from orchestrator.errors import TrainingError
from workers.parcels import MetricPack, Number, Pack

__all__ = ["each_rank", "reduce_numbers", "reduce_packs"]


def reduce_packs(packs: Sequence[Mapping[str, Pack]], empty: Mapping[str, object]) -> dict[str, Any]:
    """Merge the metrics of all ranks.

    Args:
        packs: one mapping per rank, in the order of ranks: metric name → its pack. A rank that saw nothing lacks it.
        empty: metric name → an empty copy of it, for those that travel as states.

    Returns:
        name → value: a float, or what the metric computes if that is no single number.

    Raises:
        TrainingError: a metric can't be computed from the merged states; names it.
    """
    names = list(dict.fromkeys(name for pack in packs for name in pack))
    merged: dict[str, Any] = {}
    for name in names:
        held = [pack[name] for pack in packs if name in pack]
        states = [pack for pack in held if isinstance(pack, MetricPack)]
        if states:
            prototype = empty[name]
            assert isinstance(prototype, Metric), f"no empty copy of metric {name!r} came with Built"
            merged.update(_flat(name, _compute(name, prototype, states)))
        else:
            merged[name] = _reduce_one([pack for pack in held if isinstance(pack, Number)])
    return merged


def each_rank(metric: str, packs: Sequence[Mapping[str, Pack]], empty: Mapping[str, object]) -> list[Any]:
    """One metric as each rank alone has it.

    Args:
        metric: its name.
        packs: one mapping per rank, in the order of ranks.
        empty: metric name → an empty copy of it, for those that travel as states.

    Returns:
        The values; None for a rank that saw nothing, or whose states alone have no value.
    """
    values: list[Any] = []
    for pack in packs:
        try:
            found = reduce_packs([{metric: pack[metric]}], empty) if metric in pack else {}
        except TrainingError:  # what it saw is too little: the whole need not be
            found = {}
        values.append(found.get(metric, found or None))
    return values


def reduce_numbers(numbers: Sequence[Mapping[str, Number]]) -> dict[str, float]:
    """Merge plain numbers of all ranks, name by name.

    Example:
        >>> reduce_numbers([{"loss": Number(value=1.0, count=3)}, {"loss": Number(value=2.0, count=1)}])
        {'loss': 1.25}
    """
    names = list(dict.fromkeys(name for held in numbers for name in held))
    return {name: _reduce_one([held[name] for held in numbers if name in held]) for name in names}


def _reduce_one(numbers: Sequence[Number]) -> float:
    rule = numbers[0].reduce
    values = [number.value for number in numbers]
    if rule == "sum":
        return float(sum(values))
    if rule in ("min", "max"):
        extreme = min(values) if rule == "min" else max(values)
        return float("nan") if any(map(math.isnan, values)) else float(extreme)  # min() of nan depends on the order
    weight = sum(number.count for number in numbers)
    if weight == 0:
        return float("nan")
    if len(numbers) == 1:
        return float(values[0])
    return float(sum(number.value * number.count for number in numbers if number.count) / weight)


def _compute(name: str, prototype: Metric, packs: Sequence[MetricPack]) -> object:
    metric = prototype.clone()
    metric.reset()
    metric.sync_on_compute = False
    try:
        for path, module in metric.named_modules():
            if isinstance(module, Metric):
                parts = [pack.parts[path] for pack in packs if path in pack.parts]
                _merge_states(module, [(states, updates) for states, updates in parts if updates])
        return metric.compute()
    except Exception as error:
        raise TrainingError(
            f"metric {name!r} ({type(prototype).__name__}) could not be computed over all ranks: "
            f"{type(error).__name__}: {error}"
        ) from error


def _merge_states(metric: Metric, parts: Sequence[tuple[Mapping[str, object], int]]) -> None:
    """Fill one metric (not the metrics inside it) with the merged states of the ranks that updated theirs."""
    if not parts:
        return
    updates = [count for _, count in parts]
    for state, rule in metric._reductions.items():
        setattr(metric, state, _merge_one([states[state] for states, _ in parts], updates, rule))
    metric._update_count = sum(updates)
    metric._computed = None


def _merge_one(values: Sequence[Any], updates: Sequence[int], rule: Any) -> object:
    """One state of several ranks by its own reduction rule; lists are joined in the order of ranks."""
    if isinstance(values[0], list):
        joined = [item for value in values for item in value]
        if rule is None or rule is dim_zero_cat or not joined:
            return joined
        return rule(joined)
    if rule is dim_zero_sum:
        return torch.stack(list(values)).sum(dim=0)
    if rule is dim_zero_max:
        return torch.stack(list(values)).max(dim=0).values
    if rule is dim_zero_min:
        return torch.stack(list(values)).min(dim=0).values
    if rule is dim_zero_mean:  # a rank's mean stands for as many updates as it had
        weights = torch.tensor(updates, dtype=torch.float64)
        stacked = torch.stack(list(values))
        shape = (-1,) + (1,) * (stacked.dim() - 1)
        return (stacked * weights.reshape(shape)).sum(dim=0).div(weights.sum()).to(stacked.dtype)
    if rule is dim_zero_cat:
        return torch.cat([value.reshape(-1) if value.dim() == 0 else value for value in values])
    stacked = torch.stack(list(values))
    return stacked if rule is None else rule(stacked)


def _flat(name: str, value: object) -> dict[str, Any]:
    """A float for one number; a metric that computes several gives `name/part` for each."""
    if isinstance(value, torch.Tensor):
        return {name: value.item() if value.numel() == 1 else value.tolist()}
    if isinstance(value, Mapping):
        return {key: item for part, inner in value.items() for key, item in _flat(f"{name}/{part}", inner).items()}
    return {name: value}
