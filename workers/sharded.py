"""Tensors of which each rank holds a part (DTensors), without what made them: to be written, and to be read again.

A part that is written knows its place in the whole tensor and no process group, so that it outlives the one in which it
was made. Used by `shards.py`, `parts.py` and `checkpointing.py`; which models are sharded is said in `sharding.py`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.optim import Optimizer

from workers.errors import ProgramError

__all__ = ["Part", "Share", "Shares", "held", "part_of", "shares_in"]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """This rank's part of a tensor, as torch's planner wants it.

    Args:
        local: the part.
        offsets: where it begins, in each dimension.
        size: of the whole tensor.
    """

    local: torch.Tensor
    offsets: torch.Size
    size: torch.Size

    def numel(self) -> int:
        """Numbers in the whole tensor."""
        return math.prod(self.size)

    def element_size(self) -> int:
        """Bytes of one of them."""
        return self.local.element_size()

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        """What torch's planner asks for: one item, or none of an empty part."""
        if not self.local.numel():
            return []
        data = TensorWriteData(
            chunk=ChunkStorageMetadata(offsets=self.offsets, sizes=self.local.size()),
            properties=TensorProperties.create_from_tensor(self.local),
            size=self.size,
        )
        return [WriteItem(index=MetadataIndex(name, self.offsets), type=WriteItemType.SHARD, tensor_data=data)]


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """What of a saved tensor falls to this rank.

    Args:
        offsets: where it begins, in each dimension.
        sizes: how much of it.
        whole: makes of that part what this rank's model or optimizer holds.
    """

    offsets: torch.Size
    sizes: torch.Size
    whole: Callable[[torch.Tensor], torch.Tensor]


Shares = Callable[[str, torch.Size], Share | None]
"""(name of a saved tensor, its size) → what of it falls to this rank; None: all of it."""


def part_of(tensor: torch.Tensor, where: str) -> torch.Tensor | Part:
    """What this rank holds of a tensor: the tensor itself, if it is no part of another.

    Args:
        tensor: any.
        where: its name, for the error.

    Raises:
        ProgramError: it is shared out in another way than by rows or columns.
    """
    if not _is_sharded(tensor):
        return tensor
    local: torch.Tensor = tensor.to_local().detach()  # type: ignore[attr-defined]
    offsets, sizes = _place_of(tensor, where)
    if sizes == tensor.size():
        return local
    return Part(local, offsets, tensor.size())


def shares_in(entries: Mapping[str, object]) -> Shares:
    """What falls to this rank of the tensors in a checkpoint, for a program that is built.

    Args:
        entries: the program's state. Of a model that is sharded, this rank takes its part of each parameter; of its
            optimizer, the same part of what it remembers for each; of any other entry, what its own state holds.
    """
    by_name: dict[str, torch.Tensor] = {}
    by_parameter: dict[str, torch.Tensor] = {}
    others = []
    for name, entry in entries.items():
        if isinstance(entry, nn.Module):
            by_name |= _sharded_in(name, entry.state_dict())
        elif isinstance(entry, Optimizer):
            parameters = [parameter for group in entry.param_groups for parameter in group["params"]]
            by_parameter |= {f"{name}.state.{number}": p for number, p in enumerate(parameters) if _is_sharded(p)}
        else:
            others.append((name, entry))
    for name, entry in others if by_name or by_parameter else ():  # as averages of a sharded model's weights
        by_name |= _sharded_in(name, cast(Any, entry).state_dict())

    def share(name: str, size: torch.Size) -> Share | None:
        like = by_name.get(name, by_parameter.get(name.rpartition(".")[0]))
        if like is None or like.size() != size:
            return None
        offsets, sizes = _place_of(like, name)
        return Share(offsets, sizes, lambda local: _like(like, local))

    return share


def held(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What this rank holds of each tensor, itself and no copy: for what is done to them element by element.

    Args:
        tensors: any, sharded or not.

    Example:
        >>> held([torch.ones(2)])
        [tensor([1., 1.])]
    """
    return [tensor.to_local() if _is_sharded(tensor) else tensor for tensor in tensors]  # type: ignore[attr-defined]


def _sharded_in(name: str, state: object) -> dict[str, torch.Tensor]:
    """The sharded tensors of an entry's state, by the names that they have in a checkpoint."""
    if not isinstance(state, Mapping):
        return {}
    return {f"{name}.{key}": value for key, value in state.items() if _is_sharded(value)}


def _is_sharded(value: object) -> bool:
    """Whether something is a DTensor; none has been made where torch's module of them is not imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def _place_of(tensor: Any, where: str) -> tuple[torch.Size, torch.Size]:
    """Offsets and sizes of this rank's part. Needs no process group."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if any(type(placement) not in (Replicate, Shard) for placement in tensor.placements):
        raise ProgramError(
            f"checkpoint: state {where!r}: expected a tensor that is shared out by rows or columns, received one with "
            f"the placements {tuple(tensor.placements)}; save its full_tensor()"
        )
    sizes, offsets = compute_local_shape_and_global_offset(tensor.size(), tensor.device_mesh, tensor.placements)
    return torch.Size(offsets), torch.Size(sizes)


def _like(sharded: Any, local: torch.Tensor) -> torch.Tensor:
    """A part as a tensor that is shared out as another one is."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local.to(sharded.to_local().device),
        sharded.device_mesh,
        sharded.placements,
        run_check=False,
        shape=sharded.size(),
        stride=sharded.stride(),
    )
