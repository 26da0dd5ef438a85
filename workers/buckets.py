"""In which buckets DDP sums gradients: read off one wrapper, given to the next.

A wrapper begins with buckets in the order of registration, and after its first backward pass rebuilds them in the order
in which gradients arrived. With three and more ranks the last bits of a sum depend on where in a bucket a value lies:
a wrapper that takes the place of another must begin with that one's buckets, or what it computes differs there. Used
by `strategy.py`; `checkpointing.py` keeps layouts in checkpoints.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Layout", "layout_of", "starting_with"]

Layout = list[list[int]]
"""Indices of parameters by bucket, in the order in which buckets are reduced."""

_RATE = 100  # iterations between the statistics that DDP collects, as it is where nobody sets it


def layout_of(wrapper: DistributedDataParallel) -> Layout | None:
    """The buckets that a wrapper has rebuilt; None before its first backward pass, and for one that never does.

    After that pass DDP would wait for the next forward pass to rebuild; this does it at once, so that what is kept
    between the two is what the next pass uses. A collective then, once for each wrapper: all ranks call it at the same
    places. A wrapper with `find_unused_parameters` keeps the buckets it begins with, which are those of any other; one
    with `static_graph` rebuilds after its second pass.
    """
    ddp: Any = wrapper  # what it tells of itself has no types
    if ddp.reducer._rebuild_buckets():
        ddp._has_rebuilt_buckets = True
    if not ddp._has_rebuilt_buckets:
        return None
    ddp._set_ddp_runtime_logging_sample_rate(1)  # what is told is what was collected last
    ddp.logger.set_runtime_stats_and_log()
    ddp._set_ddp_runtime_logging_sample_rate(_RATE)
    told = ddp._get_ddp_logging_data()["rebuilt_per_bucket_param_indices"]
    return [[int(index) for index in bucket.split()] for bucket in told.split(",")]


@contextlib.contextmanager
def starting_with(layout: Layout | None) -> Iterator[None]:
    """A wrapper that is made in this context begins with these buckets; with its own if they do not fit its model.

    DDP has no argument for that: it asks `torch.distributed._compute_bucket_assignment_by_size`, and reverses the
    answer. For the moment that a wrapper takes to make, our answer is in that place.
    """
    if layout is None:
        yield
        return
    place: Any = distributed
    original = place._compute_bucket_assignment_by_size

    def assigned(
        parameters: list[torch.Tensor], limits: list[int], sparse: list[bool], *more: Any
    ) -> tuple[list[list[int]], list[int]]:
        buckets, sizes = original(parameters, limits, sparse, *more)
        if not _fits(layout, parameters, sparse):
            return buckets, sizes
        return layout[::-1], [max(sizes)] * len(layout)  # the sizes are told in statistics, and bind nobody

    place._compute_bucket_assignment_by_size = assigned
    try:
        yield
    finally:
        place._compute_bucket_assignment_by_size = original


def _fits(layout: Layout, parameters: Sequence[torch.Tensor], sparse: Sequence[bool]) -> bool:
    """Whether each parameter is in one bucket, with none of another kind beside it."""
    if sorted(index for bucket in layout for index in bucket) != list(range(len(parameters))):
        return False
    kinds = [
        [(parameters[i].dtype, parameters[i].device, i if sparse and sparse[i] else -1) for i in b] for b in layout
    ]
    return all(len(set(kind)) == 1 for kind in kinds)
