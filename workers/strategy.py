"""How a model is spread over ranks: a stable handle around a DDP wrapper that is made anew at every join.

The handle *is* the user's module (same class tree, same `__dict__`, hence parameters, hooks, `state_dict`, `train()`);
only calling it is routed: through the wrapper while training with gradients, to the module itself otherwise. So an
optimizer made from it, and every reference a user keeps, stays good over all generations.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.distributed import _broadcast_coalesced  # type: ignore[attr-defined]  # what DDP itself uses
from torch.nn.parallel import DistributedDataParallel

from workers.buckets import Layout, layout_of, starting_with

__all__ = ["DataParallel", "no_sync"]

Module = TypeVar("Module", bound=nn.Module)
_BUCKET = 250 << 20  # bytes that are broadcast in one go, as DDP does it


class DataParallel:
    """The models of one rank, and their wrappers in the current generation.

    Args:
        device: where the models live.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._routes: list[_Route] = []

    def prepare(self, module: Module, **options: object) -> Module:
        """Move a module to the device and give the handle to train it with.

        Args:
            module: the user's model; must have parameters that need gradients to be wrapped.
            options: for `DistributedDataParallel`: `find_unused_parameters`, `bucket_cap_mb`, `static_graph` …

        Raises:
            TypeError: it is no module, or it is a handle or a wrapper already.
        """
        if isinstance(module, _Handle | DistributedDataParallel):
            raise TypeError(
                f"worker.prepare: expected a plain module, received {type(module).__name__} that is prepared already; "
                "pass the module you built"
            )
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"worker.prepare: expected a torch.nn.Module, received {type(module).__name__}; pass the model itself"
            )
        route = _Route(module.to(self.device), options)
        self._routes.append(route)
        return cast(Module, _handle_of(route))

    def wrap(self, *, first: bool, layouts: Sequence[Layout | None] | None = None) -> None:
        """Wrap every model for the process group that was just formed.

        Args:
            first: copy rank 0's parameters to all ranks. Later generations restore a state that is equal already.
            layouts: what `layouts()` told when that state was saved: the sums are then the same to the last bit. Those
                of models that have changed since are ignored.
        """
        self.unwrap()
        known = layouts or ()
        for route, layout in zip(self._routes, [*known, *[None] * len(self._routes)], strict=False):
            if any(parameter.requires_grad for parameter in route.module.parameters()):
                ids = [self.device.index] if self.device.type == "cuda" else None
                with starting_with(layout):
                    route.wrapper = DistributedDataParallel(
                        route.module,
                        device_ids=ids,
                        init_sync=first,
                        **route.options,  # type: ignore[arg-type]
                    )
                route.given, route.rebuilt = layout, None

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
            if module.__dict__ is route.module.__dict__:
                shares = route.wrapper is not None and route.wrapper.broadcast_buffers
                return shares or next(route.module.buffers(), None) is None
        return False

    @property
    def trained(self) -> list[nn.Module]:
        """The models that have something to train, in the order in which they were prepared."""
        return [r.module for r in self._routes if any(p.requires_grad for p in r.module.parameters())]

    def hold(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Whether all parameters are in these models."""
        known = {id(parameter) for route in self._routes for parameter in route.module.parameters()}
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
            buffers = [buffer for buffer in route.module.buffers() if buffer.numel()]
            if route.wrapper is not None and route.wrapper.broadcast_buffers and buffers:
                with torch.no_grad():
                    _broadcast_coalesced(route.wrapper.process_group, [b.detach() for b in buffers], _BUCKET, 0)

    def bypassed(self) -> list[str]:
        """Models that were last called with gradients but around their wrapper: those would stay on this rank."""
        return [type(route.module).__name__ for route in self._routes if route.bypassed]

    def unwrap(self) -> None:
        """Forget the wrappers and their gradients; the handles call the plain modules."""
        for route in self._routes:
            if route.wrapper is not None:
                route.module.zero_grad(set_to_none=True)  # gradients may be views into the wrapper's buckets
            route.wrapper = route.given = route.rebuilt = None


def no_sync(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Accumulate gradients without an all-reduce inside this context; for a prepared model, else nothing happens.

    Example:
        >>> with no_sync(model):  # doctest: +SKIP
        ...     worker.backward(loss)
    """
    if isinstance(model, _Handle):
        wrapper = model._route.wrapper
        if wrapper is not None:
            return cast("contextlib.AbstractContextManager[None]", wrapper.no_sync())
    return contextlib.nullcontext()


class _Route:
    """A module and what its handle calls at the moment."""

    def __init__(self, module: nn.Module, options: dict[str, object]) -> None:
        self.module = module
        self.options = options
        self.wrapper: DistributedDataParallel | None = None
        self.given: Layout | None = None  # buckets that the wrapper began with
        self.rebuilt: Layout | None = None  # and that it has made since
        self.bypassed = False  # last called with gradients, in evaluation mode


class _Handle:
    """What makes a handle of a module class; mixed in by `_handle_of`."""

    _route: _Route

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        route = self._route
        wrapper = route.wrapper
        if wrapper is not None and torch.is_grad_enabled():
            route.bypassed = not route.module.training
            if not route.bypassed:
                return wrapper(*args, **kwargs)
        return route.module(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, object]) -> nn.Module:
        return copy.deepcopy(self._route.module, memo)

    def __copy__(self) -> nn.Module:
        return copy.copy(self._route.module)

    def __reduce_ex__(self, protocol: Any) -> Any:  # a pickled handle comes back as the plain module
        return _itself, (self._route.module,)


def _itself(module: nn.Module) -> nn.Module:
    return module


def _handle_of(route: _Route) -> nn.Module:
    """A handle of the route's module: an object of a subclass of its class that shares its `__dict__`."""
    kind = type(route.module)
    handle_kind = type(kind.__name__, (_Handle, kind), {"__module__": kind.__module__, "_route": route})
    handle: nn.Module = object.__new__(handle_kind)
    object.__setattr__(handle, "__dict__", route.module.__dict__)
    return handle
