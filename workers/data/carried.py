"""What crosses into a loader process, pickled so that it arrives: code by value, large tensors in shared memory.

A data set that a user defined in the script that was started, or in a notebook, has no module that another process
could import; a rank has it by value, and passes it on by value. Plain pickle, which multiprocessing uses, does not.
"""

from __future__ import annotations

import io
import pickle
from collections import ChainMap
from collections.abc import Callable
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, TypeVar

import cloudpickle
import torch
from torch.multiprocessing import reductions

__all__ = ["Carried"]

SHARED_FROM = 1 << 16  # bytes: a shared tensor takes a file handle, and a new process can be given only 250 of them

Thing = TypeVar("Thing")


class Carried(Generic[Thing]):
    """A thing that travels by value: pickle this, and the other side unpickles the bare thing.

    Args:
        thing: what to pass on; if it can be called, so can this.
    """

    def __init__(self, thing: Thing) -> None:
        self.thing = thing

    def __call__(self, *args: object) -> object:
        """Call the thing."""
        assert callable(self.thing), f"{self.thing!r} is carried to be called"
        return self.thing(*args)

    def __reduce__(self) -> tuple[Callable[[bytes], Thing], tuple[bytes]]:
        buffer = io.BytesIO()
        _Pickler(buffer).dump(self.thing)
        return pickle.loads, (buffer.getvalue(),)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Cloudpickle with multiprocessing's ways: locks and queues, and torch's tensors in shared memory."""

    def __init__(self, file: io.BytesIO) -> None:
        reduce = partial(_reduce_tensor, {})  # no method: a pickler in a circle would keep all that it has pickled
        tensors: dict[type, Callable[..., Any]] = {torch.Tensor: reduce, torch.nn.Parameter: reduce}
        processes = {
            kind: reducer
            for kind, reducer in ForkingPickler._extra_reducers.items()  # type: ignore[attr-defined]
            if not kind.__module__.startswith("torch")  # its ways for tensors and their storage
        }
        # Before the pickler begins: it looks for its table only then.
        self.dispatch_table = ChainMap(tensors, cloudpickle.Pickler.dispatch_table, processes)
        super().__init__(file)


def _reduce_tensor(shared: dict[int, _Storage], tensor: Any) -> Any:
    """By reference to shared memory if it is there already, or worth it; else by value."""
    on_the_cpu = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if on_the_cpu and (tensor.is_shared() or tensor.nbytes >= SHARED_FROM):
        rebuild, (kind, _, metadata) = reductions.reduce_tensor(tensor)  # type: ignore[no-untyped-call]
        storage = tensor.untyped_storage()
        known = shared.setdefault(storage.data_ptr(), _Storage(storage))  # one handle for all its views
        return rebuild, (kind, _TypedStorage(known, tensor.dtype), metadata)
    if on_the_cpu and tensor.nbytes < tensor.untyped_storage().nbytes():
        tensor = tensor.detach().clone()  # a row of a table: without the table
    return tensor.__reduce_ex__(pickle.HIGHEST_PROTOCOL)


class _Storage:
    """Memory that arrives as the same memory."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.storage = storage

    def __reduce__(self) -> Any:
        return reductions.reduce_storage(self.storage)  # type: ignore[no-untyped-call]


class _TypedStorage:
    """The same, with the type of what lies in it."""

    def __init__(self, storage: _Storage, dtype: torch.dtype) -> None:
        self.storage = storage
        self.dtype = dtype

    def __reduce__(self) -> Any:
        return reductions.rebuild_typed_storage, (self.storage, self.dtype)
