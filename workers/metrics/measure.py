"""Metrics of one's own, by three functions over a few numbers; they become metrics of torchmetrics.

torchmetrics is imported here, so whoever needs this imports it late.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torchmetrics import Metric

__all__ = ["Measure", "MeasureMetric"]

Numbers = dict[str, Any]


@runtime_checkable
class Measure(Protocol):
    """What a metric of one's own has; an attribute `reduce` may say which numbers are not added up over ranks.

    Example:
        >>> class Perplexity:
        ...     def start(self):
        ...         return {"loss": 0.0, "tokens": 0.0}
        ...
        ...     def update(self, numbers, loss, tokens):
        ...         return {"loss": numbers["loss"] + loss * tokens, "tokens": numbers["tokens"] + tokens}
        ...
        ...     def compute(self, numbers):
        ...         return torch.exp(numbers["loss"] / numbers["tokens"])
        >>> metric = MeasureMetric(Perplexity())
        >>> metric.update(2.0, 10)
        >>> metric.update(1.0, 30)
        >>> round(metric.compute().item(), 4)
        3.4903
    """

    def start(self) -> Mapping[str, Any]:
        """The numbers or tensors with which an epoch begins, by name."""
        ...

    def update(self, numbers: Numbers, /, *seen: Any) -> Mapping[str, Any]:
        """The numbers after one more batch."""
        ...

    def compute(self, numbers: Numbers, /) -> Any:
        """The value: from the numbers of one rank, or from those of all ranks put together."""
        ...


class MeasureMetric(Metric):
    """A measure as torchmetrics has its metrics.

    Args:
        measure: the measure; with `reduce = {"name": "max"}` (or "min", "sum", "cat") its numbers of several ranks are
            put together so, else they are added up.
    """

    full_state_update = False

    def __init__(self, measure: Measure) -> None:
        super().__init__()
        self.measure = measure
        rules: Mapping[str, str] = getattr(measure, "reduce", {})
        for name, number in measure.start().items():
            given = number if isinstance(number, torch.Tensor) else torch.tensor(float(number), dtype=torch.float64)
            self.add_state(name, given, dist_reduce_fx=rules.get(name, "sum"))

    def update(self, *seen: Any, **named: Any) -> None:
        """Take in one more batch."""
        numbers = self.measure.update(self._numbers(), *seen, **named)
        for name, number in numbers.items():
            known = getattr(self, name)
            setattr(self, name, torch.as_tensor(number, dtype=known.dtype, device=known.device))

    def compute(self) -> Any:
        """The value so far."""
        return self.measure.compute(self._numbers())

    def _numbers(self) -> Numbers:
        return {name: getattr(self, name) for name in self._defaults}
