"""Look for the largest batch that fits into memory: real steps on batches made of one real batch, undone afterwards.

Each rank takes them alone, without averaging gradients, since a rank that runs out of memory in the middle of a step
would leave the others waiting; then all agree on the least.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import nn

from workers.engine import Engine
from workers.handlers.ranks import Ranks, in_step, interval
from workers.handlers.trial import BeforeTraining, data_of, state_of, undone
from workers.parcels import TRAINER

__all__ = ["BatchSizeFinder"]

STEPS = 2  # an optimizer makes its state in the first


class BatchSizeFinder(BeforeTraining):
    """Find how many samples a rank can take in one step: begin with a size, double it while it fits, halve it if not.

    It looks once, before the first epoch, and puts the size into `state.metrics["fitting_batch_size"]`; the batches
    stay as the program makes them. Steps must use no collectives of their own, and models must not be sharded.

    Args:
        start: samples with which it begins; default: those of the first batch.
        largest: no larger size is tried.
        grow: whether larger sizes are tried at all; else the size is the start, halved as often as it must be.

    Attributes:
        size: samples per rank that fit; None before the search.

    Raises:
        ValueError: an argument can't be used.

    Example:
        >>> orchestrator.attach(BatchSizeFinder(largest=1024))  # doctest: +SKIP
    """

    def __init__(self, start: int | None = None, *, largest: int = 65536, grow: bool = True) -> None:
        self.start = None if start is None else interval("BatchSizeFinder", start, "start")
        self.largest = interval("BatchSizeFinder", largest, "largest")
        self.grow = grow
        self.size: int | None = None

    def __call__(self, target: Engine | Ranks) -> None:
        """Look now.

        Raises:
            MemoryError: not even one sample fits.
        """
        if isinstance(target, Engine):
            self._search(target)
        else:
            sizes = target.call(_search_on, self)
            self.size = sizes[0]
            target.note("BATCH_SIZE_FOUND", per_rank=self.size, all_ranks=sum(sizes))
        target.state.metrics["fitting_batch_size"] = self.size

    def _search(self, engine: Engine) -> None:
        state = state_of(engine, self._state, "BatchSizeFinder")
        data, worker = data_of(engine, "BatchSizeFinder"), engine.worker
        with nullcontext() if worker is None else worker.set_aside():
            batch = next(iter(data))
        size = min(self.start or _length_of(batch), self.largest)
        fitting, fits = 0, False
        while size > 0 and not (fits := self._fits(engine, state, batch, size)):
            size //= 2
        while fits:
            fitting = size
            size = min(2 * size, self.largest)
            fits = self.grow and size > fitting and self._fits(engine, state, batch, size)
        if not fitting:
            raise MemoryError(
                "BatchSizeFinder: expected a step with one sample to fit into memory, received one that does not on "
                "some rank; take a smaller model, or shard it"
            )
        self.size = fitting

    def _fits(self, engine: Engine, state: Mapping[str, Any], batch: Any, size: int) -> bool:
        """Whether a step with so many samples fits on all ranks."""
        fits = True
        with undone(engine, state) as trial, ExitStack() as stack:
            if engine.worker is not None:
                for model in (entry for entry in state.values() if isinstance(entry, nn.Module)):
                    stack.enter_context(engine.worker.no_sync(model))
            try:
                trial.run([_of_size(batch, size)] * STEPS)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                fits = False
        if not fits:
            gc.collect()
            if torch.accelerator.is_available():
                torch.accelerator.empty_cache()
        return bool(engine.worker.all_reduce(int(fits), "min")) if in_step(engine) else fits


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, of the device or the machine, was not enough.

    Example:
        >>> is_out_of_memory(RuntimeError("CUDA out of memory")), is_out_of_memory(RuntimeError("size mismatch"))
        (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "not enough memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _length_of(batch: Any) -> int:
    """Samples in a batch: the length of the first tensor in it."""
    length = next(_lengths_in(batch), 0)
    if not length:
        raise ValueError(
            f"BatchSizeFinder: expected batches that hold tensors with samples along the first dimension, received "
            f"{type(batch).__name__}; give it an engine with such batches"
        )
    return length


def _lengths_in(batch: Any) -> Iterator[int]:
    if isinstance(batch, torch.Tensor) and batch.dim():
        yield len(batch)
    for part in batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ():
        yield from _lengths_in(part)


def _of_size(batch: Any, size: int) -> Any:
    """A batch of so many samples, which are those of a batch again and again."""
    length = _length_of(batch)
    return _take(batch, torch.arange(size) % length, length)


def _take(batch: Any, which: torch.Tensor, length: int) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch[which.to(batch.device)] if batch.dim() and len(batch) == length else batch
    if isinstance(batch, Mapping):
        return {key: _take(part, which, length) for key, part in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_take(part, which, length) for part in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(_take(part, which, length) for part in batch)
    return batch


def _search_on(worker: Any, finder: BatchSizeFinder) -> int:
    """The search on one rank; for `orchestrator.call`."""
    finder._search(worker.program.engines[TRAINER])
    assert finder.size is not None, "a search that ends has found one"
    return finder.size
