"""Replicated models: a DistributedDataParallel wrapper for each generation, with the options that a user gave.

Used by `strategy.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from workers.buckets import Layout, starting_with
from workers.errors import ProgramError
from workers.handle import Route

__all__ = ["check_options", "replicate"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_options(options: dict[str, Any]) -> None:
    """See that DDP can be given these options, before the ranks meet.

    Raises:
        ProgramError: `compression` is none that there is.
    """
    _hook_of(options.get("compression"))


def replicate(route: Route, device: torch.device, *, first: bool, layout: Layout | None) -> None:
    """Wrap a model for the process group that was just formed; a collective.

    Args:
        route: of the model.
        device: where it is.
        first: copy rank 0's parameters to all ranks.
        layout: buckets to begin with.
    """
    options = {name: value for name, value in route.options.items() if name != "compression"}
    module = route.compiled if isinstance(route.compiled, nn.Module) else route.module
    with starting_with(layout):
        route.wrapper = DistributedDataParallel(
            module, device_ids=[device.index] if device.type == "cuda" else None, init_sync=first, **options
        )
    hook = _hook_of(route.options.get("compression"))
    if hook is not None:
        route.wrapper.register_comm_hook(None, hook)
    route.given, route.rebuilt, route.passes = layout, None, 0


def _hook_of(compression: Any) -> Callable[[Any, Any], Any] | None:
    """How gradients are sent: as they are, in another dtype, or by a communication hook of the user's."""
    if compression is None or (callable(compression) and not isinstance(compression, str)):
        return compression
    if compression not in _DTYPES:
        raise ProgramError(
            f"worker.prepare: compression: expected 'bf16', 'fp16' or a communication hook, received {compression!r}; "
            "leave it out to send gradients as they are"
        )
    return _sent_as(_DTYPES[compression])


def _sent_as(dtype: torch.dtype) -> Callable[[Any, Any], Any]:
    """A hook that averages gradients over the ranks in another dtype; torch's own such hooks want NCCL."""

    def reduce(state, bucket):  # type: ignore[no-untyped-def]  # torch refuses annotations that are texts
        whole = bucket.buffer()
        work = dist.all_reduce(whole.to(dtype).div_(dist.get_world_size()), async_op=True)
        assert work is not None, "this rank is a member of the group"
        return work.get_future().then(lambda done: whole.copy_(done.value()[0]))

    return reduce
