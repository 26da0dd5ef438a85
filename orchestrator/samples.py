"""Which samples an iteration is given, in words: for the error of a run that fails at the same one each time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers.data.sampler import GlobalBatches

__all__ = ["samples_of"]

MOST = 64  # indices that are written out


def samples_of(data: Mapping[str, Any], iteration: int) -> str:
    """The indices of the samples of one iteration, over all ranks; empty if the data has no global order.

    Args:
        data: fingerprint of the trainer's data.
        iteration: counted from 1.

    Example:
        >>> data = {"version": 1, "samples": 6, "batch_size": 3, "shuffle": False, "seed": 0, "drop_last": False}
        >>> samples_of(data, 2)
        'samples 3, 4, 5'
    """
    if not data or iteration < 1:
        return ""
    batches = GlobalBatches(**{name: value for name, value in data.items() if name != "version"})
    indices = next(batches.walk(range(iteration - 1, iteration), 0, 1))
    more = f" and {len(indices) - MOST} more" if len(indices) > MOST else ""
    return f"samples {', '.join(map(str, indices[:MOST]))}{more}"
