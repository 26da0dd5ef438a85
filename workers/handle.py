"""The stable handle of a model: it *is* the user's module, only calling it is routed, to what spreads it at the moment.

A handle has the same class tree and the same `__dict__` as the module, hence its parameters, hooks, `state_dict` and
`train()`. So an optimizer made from it, and every reference a user keeps, stays good over all generations.
Made by `strategy.py`, which decides where a call goes.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from workers.buckets import Layout

__all__ = ["Handle", "Route", "Strategy", "handle_of", "no_sync"]

Strategy = Literal["ddp", "fsdp", "none"]


class Route:
    """A module and what its handle calls at the moment.

    Attributes:
        wrapper: of the current generation, for a model that is replicated.
        given: buckets that the wrapper began with.
        rebuilt: and that it has made since.
        bypassed: last called with gradients, in evaluation mode: those stay on this rank.
        sharded: its parameters are shared out over the ranks of this generation.
        refresh: called before each forward pass in training of a model that is sharded.
        compiled: what is called instead of the module.
        passes: how often the wrapper has reduced gradients.
    """

    def __init__(self, module: nn.Module, strategy: Strategy, options: dict[str, Any]) -> None:
        self.module = module
        self.strategy = strategy
        self.options = options
        self.wrapper: DistributedDataParallel | None = None
        self.given: Layout | None = None
        self.rebuilt: Layout | None = None
        self.bypassed = False
        self.sharded = False
        self.refresh: Callable[[], None] | None = None
        self.compiled: Callable[..., Any] | None = None
        self.passes = 0

    def call(self, args: Any, kwargs: Any) -> Any:
        """The forward pass of this moment: through the wrapper while training with gradients."""
        with_gradients = torch.is_grad_enabled()
        if self.wrapper is not None and with_gradients:
            self.bypassed = not self.module.training
            if not self.bypassed:
                self.passes += self.wrapper.require_backward_grad_sync
                return self.wrapper(*args, **kwargs)
        if self.sharded:
            if self.refresh is not None and self.module.training:
                self.refresh()
            result = self.module(*args, **kwargs)
            if not with_gradients:
                cast(Any, self.module).reshard()  # no backward pass comes to do so
            return result
        return (self.module if self.compiled is None else self.compiled)(*args, **kwargs)


class Handle:
    """What makes a handle of a module class; mixed in by `handle_of`."""

    _route: Route

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What calling the module does, with its hooks."""
        return self._route.call(args, kwargs)

    def __deepcopy__(self, memo: dict[int, object]) -> nn.Module:
        return copy.deepcopy(self._route.module, memo)

    def __copy__(self) -> nn.Module:
        return copy.copy(self._route.module)

    def __reduce_ex__(self, protocol: Any) -> Any:  # a pickled handle comes back as the plain module
        return _itself, (self._route.module,)


def handle_of(route: Route, kind: type[nn.Module]) -> nn.Module:
    """A handle of the route's module: an object of a subclass of its class that shares its `__dict__`."""
    handle_kind = type(kind.__name__, (Handle, kind), {"__module__": kind.__module__, "_route": route})
    handle: nn.Module = object.__new__(handle_kind)
    object.__setattr__(handle, "__dict__", route.module.__dict__)
    return handle


def no_sync(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Accumulate gradients without an all-reduce inside this context; for a prepared model, else nothing happens.

    Example:
        >>> with no_sync(model):  # doctest: +SKIP
        ...     worker.backward(loss)
    """
    if isinstance(model, Handle):
        route = model._route
        if route.sharded:
            return _unreduced(route.module)
        wrapper = route.wrapper
        if wrapper is not None and not (wrapper.static_graph and not route.passes):
            # With a static graph DDP learns in its first pass, which has to reduce; what that adds up is the same.
            return cast("contextlib.AbstractContextManager[None]", wrapper.no_sync())
    return contextlib.nullcontext()


@contextlib.contextmanager
def _unreduced(module: Any) -> Iterator[None]:
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


def _itself(module: nn.Module) -> nn.Module:
    return module
