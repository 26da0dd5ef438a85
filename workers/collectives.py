"""Collectives of one rank, for tensors and plain numbers, with a serial twin: the same call in a world of one.

They use the default process group of the current generation. Called on the training thread only: a process function,
a handler on every rank, or a call that goes to all ranks.
"""

from __future__ import annotations

from typing import Literal, TypeVar, cast

import torch
import torch.distributed as dist

__all__ = ["Value", "all_gather", "all_reduce", "barrier", "broadcast"]

Value = TypeVar("Value", bound="torch.Tensor | float")
Op = Literal["sum", "mean", "min", "max", "product"]
_OPS = {
    "sum": dist.ReduceOp.SUM,
    "mean": dist.ReduceOp.SUM,  # gloo has no average: divided afterwards
    "min": dist.ReduceOp.MIN,
    "max": dist.ReduceOp.MAX,
    "product": dist.ReduceOp.PRODUCT,
}


def all_reduce(value: Value, op: Op = "sum", *, device: torch.device) -> Value:
    """Reduce a tensor or a number over all ranks; every rank gets the result, the argument is left as it is.

    Args:
        value: tensor of any shape, equal on all ranks, or a number.
        op: "sum", "mean", "min", "max" or "product".
        device: where plain numbers are reduced.

    Raises:
        TypeError: neither a tensor nor a number.
        ValueError: an operation that is not known.
    """
    if op not in _OPS:
        raise ValueError(f"all_reduce(op): expected one of {', '.join(_OPS)}, received {op!r}; leave it out for a sum")
    tensor, world_size = _as_tensor(value, device).clone(), 1
    if dist.is_initialized():
        dist.all_reduce(tensor, _OPS[op])
        world_size = dist.get_world_size()
    if op == "mean":
        tensor = tensor / world_size
    return _like(value, tensor)


def all_gather(value: Value, *, device: torch.device) -> list[Value]:
    """The values of all ranks, in the order of ranks.

    Args:
        value: tensor of a shape that is equal on all ranks, or a number.
        device: where plain numbers are gathered.

    Raises:
        TypeError: neither a tensor nor a number.
    """
    tensor = _as_tensor(value, device).clone(memory_format=torch.contiguous_format)
    if not dist.is_initialized():
        return [_like(value, tensor)]
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor)
    return [_like(value, item) for item in gathered]


def broadcast(value: Value, source: int = 0, *, device: torch.device) -> Value:
    """The value of rank `source`, on every rank.

    Args:
        value: tensor of a shape and type that are equal on all ranks, or a number.
        source: the rank whose value it is.
        device: where plain numbers are sent.

    Raises:
        TypeError: neither a tensor nor a number.
    """
    tensor = _as_tensor(value, device).clone(memory_format=torch.contiguous_format)
    if dist.is_initialized():
        dist.broadcast(tensor, source)
    return _like(value, tensor)


def barrier() -> None:
    """Wait until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


def _as_tensor(value: torch.Tensor | float, device: torch.device) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"collective: expected a tensor, an int or a float, received {value!r} ({type(value).__name__}); make a "
            "tensor of it"
        )
    if isinstance(value, int):
        return torch.tensor(value, dtype=torch.int64, device=device)
    dtype = torch.float32 if device.type == "mps" else torch.float64  # Metal has no float64
    return torch.tensor(value, dtype=dtype, device=device)


def _like(value: Value, tensor: torch.Tensor) -> Value:
    """A number for a number, a tensor for a tensor; the mean of whole numbers is a float."""
    return cast(Value, tensor if isinstance(value, torch.Tensor) else tensor.item())
