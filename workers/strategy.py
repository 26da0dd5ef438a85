"""How models are spread over ranks: replicated with DDP, sharded with FSDP2, or not at all; behind a stable handle.

A replicated model is wrapped anew at every join. A sharded one is made in its process group, so its program is built
anew there. What a handle is, is in `handle.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar, cast, get_args

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from workers.buckets import Layout, layout_of
from workers.errors import ProgramError
from workers.handle import Handle, Route, Strategy, handle_of, no_sync
from workers.recomputing import recompute
from workers.replicating import check_options, replicate
from workers.sharding import Fsdp, broadcast, check_shardable, shard

__all__ = ["DataParallel", "Module", "Strategy", "no_sync"]

Module = TypeVar("Module", bound=nn.Module)


class DataParallel:
    """The models of one rank, and their wrappers in the current generation.

    Args:
        device: where the models live.
        alone: whether this rank has no others beside it.
        formed: whether the process group is there already, so that models can be sharded.

    Attributes:
        shards: whether a model is to be sharded: then its program is built anew in each process group.
    """

    def __init__(self, device: torch.device, *, alone: bool = True, formed: bool = False) -> None:
        self.device = device
        self.alone = alone
        self.formed = formed
        self.shards = False
        self._routes: list[Route] = []

    def prepare(
        self,
        module: Module,
        *,
        strategy: Strategy = "ddp",
        activation_checkpointing: Sequence[type[nn.Module]] = (),
        compile: bool | dict[str, Any] = False,  # the name that torch gives it
        sync_batchnorm: bool = False,
        **options: Any,
    ) -> Module:
        """Move a module to the device and give the handle to train it with; see `Worker.prepare`.

        Raises:
            TypeError: it is no module, or it is a handle or a wrapper already.
            ProgramError: an option can't be.
        """
        self._check(module, strategy, options, bool(compile))
        if sync_batchnorm:
            module = self._synchronized(module)
        if activation_checkpointing:
            recompute(module, activation_checkpointing)
        kind = type(module)  # torch makes another one of a module that it shards
        route = Route(module, strategy, options)
        if strategy == "fsdp":
            self._shard(route)
        else:
            module.to(self.device)
        if compile:
            route.compiled = torch.compile(module, **(compile if isinstance(compile, dict) else {}))
        self._routes.append(route)
        return cast(Module, handle_of(route, kind))

    def wrap(self, *, first: bool, layouts: Sequence[Layout | None] | None = None) -> None:
        """Wrap every model that is replicated for the process group that was just formed.

        Args:
            first: copy rank 0's parameters to all ranks. Later generations restore a state that is equal already.
            layouts: what `layouts()` told when that state was saved: the sums are then the same to the last bit. Those
                of models that have changed since are ignored.
        """
        self.unwrap()
        known = layouts or ()
        for route, layout in zip(self._routes, [*known, *[None] * len(self._routes)], strict=False):
            if route.strategy == "ddp" and _trains(route.module):
                replicate(route, self.device, first=first, layout=layout)

    def layouts(self) -> list[Layout | None]:
        """In which buckets the gradients of each model are summed from the next iteration on; a collective.

        None for a model whose wrapper has not rebuilt its buckets yet. It goes with the state of the same moment: a
        wrapper made anew for that state begins with it, see `wrap`.
        """
        for route in self._routes:
            if route.wrapper is not None and route.rebuilt is None:
                route.rebuilt = layout_of(route.wrapper)
        return [route.rebuilt or route.given for route in self._routes]

    @contextlib.contextmanager
    def modes_kept(self) -> Iterator[None]:
        """Whatever calls `train()` or `eval()` in this context, afterwards all modules are in the mode they were."""
        modes = [(module, module.training) for route in self._routes for module in route.module.modules()]
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            for route in self._routes:
                route.bypassed = False

    def modules(self) -> list[nn.Module]:
        """The models themselves, in the order in which they were prepared."""
        return [route.module for route in self._routes]

    def equal(self, module: nn.Module) -> bool:
        """Whether a model is one of these and the same on all ranks, after `share_buffers`.

        Its gradients are averaged; its buffers are rank 0's if the wrapper broadcasts them, else each rank has its own.
        """
        for route in self._routes:
            if module.__dict__ is route.module.__dict__ and route.strategy != "none":
                return _shares_buffers(route) or next(route.module.buffers(), None) is None
        return False

    @property
    def trained(self) -> list[nn.Module]:
        """The models that are trained and the same on all ranks, in the order in which they were prepared."""
        return [route.module for route in self._routes if route.strategy == "ddp" and _trains(route.module)]

    def hold(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Whether all parameters are in these models, and trained by all ranks together."""
        together = [route.module for route in self._routes if route.strategy != "none"]
        known = {id(parameter) for module in together for parameter in module.parameters()}
        return all(id(parameter) in known for parameter in parameters)

    def unprepared(self, module: nn.Module) -> str | None:
        """Name of the first parameter of a module that is trained, but in none of these models; None if there is none.

        Parts of these models, and what is made of them, have no such parameter.
        """
        known = {id(parameter) for route in self._routes for parameter in route.module.parameters()}
        own = (name for name, p in module.named_parameters() if p.requires_grad and id(p) not in known)
        return next(own, None)

    def share_buffers(self) -> None:
        """Make rank 0's buffers (the running statistics of BatchNorm …) everybody's; a collective.

        DDP does the same before every forward pass in training, so this changes nothing that training would see; but
        what is evaluated or saved in between is then one model, not one for each rank.
        """
        for route in self._routes:
            if _shares_buffers(route):
                broadcast(route.module.buffers())

    @property
    def sharded(self) -> bool:
        """Whether there is one whose parameters are shared out: all ranks must call it as often as the others."""
        return any(route.sharded for route in self._routes)

    def forget(self) -> None:
        """Forget all models."""
        self._routes.clear()

    def bypassed(self) -> list[str]:
        """Models that were last called with gradients but around their wrapper: those would stay on this rank."""
        return [type(route.module).__name__ for route in self._routes if route.bypassed]

    def unwrap(self) -> None:
        """Forget the wrappers and their gradients; the handles call the plain modules."""
        for route in self._routes:
            if route.wrapper is not None:
                route.module.zero_grad(set_to_none=True)  # gradients may be views into the wrapper's buckets
            route.wrapper = route.given = route.rebuilt = None

    # ---------------------------------------------------------------- making one
    def _check(self, module: object, strategy: str, options: dict[str, Any], compiled: bool) -> None:
        if isinstance(module, Handle | DistributedDataParallel):
            raise TypeError(
                f"worker.prepare: expected a plain module, received {type(module).__name__} that is prepared already; "
                "pass the module you built"
            )
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"worker.prepare: expected a torch.nn.Module, received {type(module).__name__}; pass the model itself"
            )
        if strategy not in get_args(Strategy):
            raise ProgramError(
                f"worker.prepare: strategy: expected 'ddp', 'fsdp' or 'none', received {strategy!r}; leave it out for "
                "'ddp'"
            )
        if strategy == "none" and options:
            raise ProgramError(
                f"worker.prepare(strategy='none'): expected no options, received {', '.join(sorted(options))}; leave "
                "them out"
            )
        if strategy == "fsdp" and compiled:
            raise ProgramError(
                "worker.prepare(strategy='fsdp'): compile: expected none, since a whole model can't be gathered part "
                "by part, received one; call compile() of its blocks before worker.prepare"
            )
        if strategy == "ddp":
            check_options(options)

    def _shard(self, route: Route) -> None:
        """Shard a model if the ranks have met; until then it stays whole, and is not yet brought to the device."""
        how = Fsdp.of(route.options, self.device)
        check_shardable(route.module, how)
        self.shards = True
        if self.alone:
            route.module.to(self.device)
        elif self.formed:
            shard(route.module, self.device, how)
            route.sharded = True
            if how.broadcast_buffers and next(route.module.buffers(), None) is not None:
                route.refresh = partial(_refresh, route.module)

    def _synchronized(self, module: Module) -> Module:
        if not self.alone and self.device.type == "cpu":
            raise ProgramError(
                "worker.prepare: sync_batchnorm: expected ranks on accelerators, received ranks on the CPU, where "
                "torch's SyncBatchNorm does not run; leave it out there, as in sync_batchnorm=worker.device.type != "
                "'cpu'"
            )
        return cast(Module, nn.SyncBatchNorm.convert_sync_batchnorm(module))  # type: ignore[no-untyped-call]


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _shares_buffers(route: Route) -> bool:
    """Whether rank 0's buffers are everybody's in training."""
    if route.sharded:
        return route.refresh is not None
    return route.wrapper is not None and bool(route.wrapper.broadcast_buffers)


def _refresh(module: nn.Module) -> None:
    broadcast(module.buffers())
