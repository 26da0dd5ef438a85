"""Batches of this rank, with a cursor: a torch `DataLoader` that is told which samples to fetch, step by step.

The order comes from `sampler.py`; fetching, collating and loader processes are torch's. Each `iter()` goes on from the
cursor to the end of the pass, so that an engine can stop, rewind and resume anywhere at no cost.
Made by `Worker.loader`; knows nothing of Ray or the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
from torch.utils.data import DataLoader

from workers.data.fingerprint import VERSION
from workers.data.sampler import GlobalBatches

__all__ = ["EvaluationView", "GlobalLoader", "Membership", "SizedDataset"]

Membership = Callable[[], tuple[int, int]]  # () → (rank, world size), asked anew at every pass


class SizedDataset(Protocol):
    """A map-style data set: what torch's `DataLoader` needs, with a length."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int, /) -> object:
        """One sample."""
        ...


class GlobalLoader:
    """This rank's batches of one global sequence.

    Args:
        dataset: map-style data set with a length; the same on every rank.
        batches: the global sequence.
        membership: tells (rank, world size); asked at the start of each `iter()`.
        consumed: told of every batch that is handed out: its samples on this rank, and in the global batch.
        options: for torch's `DataLoader`: `num_workers`, `collate_fn`, `pin_memory`, `worker_init_fn` …

    Example:
        >>> batches = GlobalBatches(samples=10, batch_size=4, shuffle=False, seed=0)
        >>> [batch.tolist() for batch in GlobalLoader(range(10), batches, lambda: (1, 2))]
        [[2, 3], [6, 7], [9]]
    """

    def __init__(
        self,
        dataset: SizedDataset,
        batches: GlobalBatches,
        membership: Membership,
        *,
        consumed: Callable[[int, int], None] | None = None,
        **options: object,
    ) -> None:
        self.dataset = dataset
        self.batches = batches
        self.step = 0  # global batches handed out since the start of training
        self.membership = membership
        self.consumed = consumed
        self.options = options
        self._plan = _Plan(batches)
        self._loader: DataLoader[object] | None = None
        self._evaluation: EvaluationView | None = None

    def __len__(self) -> int:
        """Batches in one pass: the same number on every rank."""
        return self.batches.steps

    def __iter__(self) -> Iterator[object]:
        """Go on from the cursor to the end of the pass."""
        if self._loader is None:
            self._loader = _make_loader(self.dataset, self._plan, self.batches.seed, self.options)
        rank, world_size = self.membership()
        end = (self.step // self.batches.steps + 1) * self.batches.steps
        self._plan.span, self._plan.rank, self._plan.world_size = range(self.step, end), rank, world_size
        for step, batch in zip(range(self.step, end), self._loader, strict=True):
            self.step = step + 1
            if self.consumed is not None:
                self.consumed(self.batches.size(step, rank, world_size), self.batches.total(step))
            yield batch

    def seek(self, iteration: int) -> None:
        """Stand so that the next batch is the one after `iteration` batches since the start of training."""
        self.step = iteration

    def position(self, iteration: int) -> int:
        """Samples that all ranks together have consumed in `iteration` batches since the start of training."""
        return self.batches.position(iteration)

    def fingerprint(self) -> dict[str, int | bool]:
        """What decides which samples come when; `fingerprint_mismatch` compares two."""
        batches = self.batches
        return {
            "version": VERSION,
            "samples": batches.samples,
            "batch_size": batches.batch_size,
            "shuffle": batches.shuffle,
            "seed": batches.seed,
            "drop_last": batches.drop_last,
        }

    def evaluation(self) -> EvaluationView:
        """This rank's exact share of one pass: nothing padded, nothing twice; ranks may get unequal numbers."""
        if self._evaluation is None:
            self._evaluation = EvaluationView(self)
        return self._evaluation


class EvaluationView:
    """One pass over this rank's share, the same at every evaluation; an empty slice is left out, not padded."""

    def __init__(self, loader: GlobalLoader) -> None:
        self._of = loader
        self._plan = _Plan(loader.batches)
        self._loader: DataLoader[object] | None = None  # its own: the trainer may be in the middle of a pass

    def __len__(self) -> int:
        """Batches of this rank; may be 0."""
        batches = self._of.batches
        return batches.steps - (1 if self._size(batches.steps - 1) == 0 else 0)

    def __iter__(self) -> Iterator[object]:
        """The batches of this rank."""
        if self._loader is None:
            self._loader = _make_loader(self._of.dataset, self._plan, self._of.batches.seed, self._of.options)
        steps = range(len(self))
        rank, world_size = self._of.membership()
        self._plan.span, self._plan.rank, self._plan.world_size = steps, rank, world_size
        for step, batch in zip(steps, self._loader, strict=True):
            if self._of.consumed is not None:
                size = self._size(step)
                self._of.consumed(size, size)
            yield batch

    def _size(self, step: int) -> int:
        return self._of.batches.size(step, *self._of.membership())


class _Plan:
    """The index lists of the coming pass; torch's DataLoader asks for them as it goes, so nothing is held."""

    def __init__(self, batches: GlobalBatches) -> None:
        self.batches = batches
        self.span = range(0)
        self.rank = 0
        self.world_size = 1

    def __iter__(self) -> Iterator[list[int]]:
        shares = self.batches.walk(self.span, self.rank, self.world_size)
        for step, indices in zip(self.span, shares, strict=True):
            yield indices or self.batches.stand_in(step)

    def __len__(self) -> int:
        return len(self.span)


def _make_loader(dataset: SizedDataset, plan: _Plan, seed: int, options: Mapping[str, object]) -> DataLoader[object]:
    """A torch DataLoader that fetches what the plan says."""
    options = dict(options)
    if options.get("num_workers"):  # never fork: this may be a process with many threads
        options.setdefault("multiprocessing_context", "forkserver")
        options.setdefault("persistent_workers", True)
    generator = torch.Generator()  # else every iter() draws from the trainer's global random numbers
    generator.manual_seed(seed)
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=plan,
        generator=generator,
        **options,  # type: ignore[arg-type]
    )
