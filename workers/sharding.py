"""Models whose parameters are shared out over the ranks: torch's FSDP2, `fully_shard`.

A sharded model belongs to the process group in which it was made: in the next generation it is built anew, and takes up
a checkpoint. What of a checkpoint falls to this rank, and what this rank gives to one, is said here too.
Used by `strategy.py`, and by `shards.py` and `checkpointing.py` for tensors that are sharded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed import _broadcast_coalesced, group  # type: ignore[attr-defined]  # what DDP itself uses

from workers.errors import ProgramError
from workers.process_group import watched

__all__ = ["Fsdp", "broadcast", "check_shardable", "shard"]

_BUCKET = 250 << 20  # bytes that are broadcast in one go, as DDP does it


@dataclass(frozen=True, slots=True, kw_only=True)
class Fsdp:
    """How a model is sharded.

    Args:
        shard_each: classes of parts, each of which is gathered for itself; default: what is in a `ModuleList`, as the
            blocks of transformers are.
        mixed_precision: "bf16", or torch's `MixedPrecisionPolicy`: the dtype in which parameters are gathered and
            computed with; they are kept, and gradients are reduced, in their own.
        offload: keep parameters, gradients and what the optimizer remembers on the CPU; for accelerators.
        reshard_after_forward: let go of gathered parameters after the forward pass, and gather them again for the
            backward pass; default: those of each part, but not the rest of the model's.
        broadcast_buffers: before each forward pass in training rank 0's buffers become everybody's, as with DDP.
    """

    shard_each: Sequence[type[nn.Module]] = ()
    mixed_precision: Any = None
    offload: bool = False
    reshard_after_forward: bool | int | None = None
    broadcast_buffers: bool = True

    @classmethod
    def of(cls, options: Mapping[str, Any], device: torch.device) -> Fsdp:
        """From what `worker.prepare` was given.

        Raises:
            ProgramError: an option is not one of these, or can't be on this device.
        """
        known = [field.name for field in fields(cls)]
        if strange := sorted(options.keys() - set(known)):
            raise ProgramError(
                f"worker.prepare(strategy='fsdp'): expected options among {', '.join(known)}, received "
                f"{', '.join(strange)}; leave it out, or use strategy='ddp'"
            )
        chosen = cls(**options)
        _precision_of(chosen.mixed_precision)
        if chosen.offload and device.type == "cpu":
            raise ProgramError(
                "worker.prepare(strategy='fsdp'): offload: expected an accelerator, from which parameters go to the "
                "CPU, received a rank on the CPU; leave it out"
            )
        return chosen


def shard(module: nn.Module, device: torch.device, options: Fsdp) -> None:
    """Share a model's parameters out over all ranks, in place; a collective.

    Args:
        module: with its parameters on the CPU or the device; rank 0's become everybody's first.
        device: where it trains.
        options: how.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    broadcast([*module.parameters(), *module.buffers()])
    with watched():
        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),), mesh_dim_names=("ranks",))
    each = partial(
        fully_shard,
        mesh=mesh,
        mp_policy=_precision_of(options.mixed_precision),
        offload_policy=CPUOffloadPolicy() if options.offload else OffloadPolicy(),
        reshard_after_forward=options.reshard_after_forward,
    )
    for part in reversed(_parts_of(module, options.shard_each)):  # what is inside of another comes first
        each(part)
    each(module)


@torch.no_grad()
def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Make rank 0's values everybody's; a collective.

    Raises:
        ProgramError: this rank has no process group, in which all ranks met, any more.
    """
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():
            by_device.setdefault(tensor.device, []).append(tensor.detach())
    world = group.WORLD
    if world is None:
        raise ProgramError(
            "the ranks' process group: expected it to be there until the run ends, received none on this rank, where "
            "it was destroyed; leave out torch.distributed.destroy_process_group(): Rankfire forms the group and ends "
            "it"
        )
    for found in by_device.values():
        _broadcast_coalesced(world, found, _BUCKET, 0)


def check_shardable(module: nn.Module, options: Fsdp) -> None:
    """See that a model can be sharded, before the ranks meet.

    Raises:
        ProgramError: it can't be; says why.
    """
    _parts_of(module, options.shard_each)
    for name, parameter in module.named_parameters():
        what = None
        if parameter.is_meta:
            what, mend = "one on the device 'meta'", "build it on the CPU, and worker.prepare shares it out"
        elif not parameter.dim():
            what, mend = "one of a single number without dimensions", "give it the shape (1,)"
        if what is not None:
            raise ProgramError(
                f"worker.prepare(strategy='fsdp'): parameter {name!r}: expected one whose rows can be shared out, "
                f"received {what}; {mend}"
            )


def _parts_of(module: nn.Module, kinds: Sequence[type[nn.Module]]) -> list[nn.Module]:
    """The parts that are gathered one by one, outer ones first."""
    if kinds:
        parts = [part for part in module.modules() if isinstance(part, tuple(kinds)) and part is not module]
        if not parts:
            raise ProgramError(
                "worker.prepare(strategy='fsdp'): shard_each: expected classes of parts of the model, received "
                f"{', '.join(kind.__name__ for kind in kinds)}, of which {type(module).__name__} has none; name the "
                "class of its blocks, or leave it out"
            )
        return parts
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    found = dict.fromkeys(part for each in lists for part in each if next(part.parameters(), None) is not None)
    return [part for part in module.modules() if part in found and not isinstance(part, nn.ModuleList)]


def _precision_of(wish: Any) -> Any:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if wish is None:
        return MixedPrecisionPolicy()
    if wish == "bf16":
        return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if isinstance(wish, MixedPrecisionPolicy):
        return wish
    raise ProgramError(
        f"worker.prepare(strategy='fsdp'): mixed_precision: expected 'bf16' or a MixedPrecisionPolicy, received "
        f"{wish!r}; leave it out to compute in the parameters' own dtype"
    )
