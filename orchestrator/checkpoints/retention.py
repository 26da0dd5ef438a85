"""Which checkpoints may go: a pure decision over what is committed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

__all__ = ["best_of", "to_prune"]

Name = TypeVar("Name")


def best_of(
    metrics: Sequence[tuple[Name, Mapping[str, float]]], metric: str, mode: Literal["max", "min"]
) -> Name | None:
    """The checkpoint with the best value; the earlier one of equals, and never one with NaN.

    Args:
        metrics: (name, its metrics), oldest first.
        metric: what is compared.
        mode: whether a greater or a smaller value is better.

    Example:
        >>> best_of([("a", {"x": 1.0}), ("b", {"x": 3.0}), ("c", {"x": 3.0})], "x", "max")
        'b'
    """
    sign = 1.0 if mode == "max" else -1.0
    best: tuple[float, Name] | None = None
    for name, values in metrics:
        value = values.get(metric)
        if isinstance(value, int | float) and not math.isnan(value) and (best is None or sign * value > best[0]):
            best = (sign * value, name)
    return None if best is None else best[1]


def to_prune(names: Sequence[Name], *, keep: int, best: Name | None) -> list[Name]:
    """The checkpoints that are neither among the newest `keep` nor the best.

    Args:
        names: oldest first.
        keep: how many of the newest stay, at least 1.
        best: one that stays in any case.

    Example:
        >>> to_prune(["a", "b", "c", "d"], keep=2, best="a")
        ['b']
    """
    assert keep >= 1, "the newest checkpoint is never pruned"
    return [name for name in names[:-keep] if name != best]
