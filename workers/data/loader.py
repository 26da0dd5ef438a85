"""Batches of this rank, with a cursor: the global sequence, walked step by step.

The order comes from `sampler.py`, the samples from `fetching.py`. Each `iter()` goes on from the cursor to the end of
the pass, so that an engine can stop, rewind and resume anywhere at no cost.
Made by `Worker.loader`; knows nothing of Ray or the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from workers.data.fetching import Fetcher, SizedDataset, Told
from workers.data.fingerprint import VERSION
from workers.data.sampler import GlobalBatches

__all__ = ["EvaluationView", "GlobalLoader", "Membership"]

Membership = Callable[[], tuple[int, int]]  # () → (rank, world size), asked anew at every pass


class GlobalLoader:
    """This rank's batches of one global sequence.

    Args:
        dataset: map-style data set with a length; the same on every rank.
        batches: the global sequence.
        membership: tells (rank, world size); asked at the start of each `iter()`.
        consumed: told of every batch that is handed out: its samples on this rank, and in the global batch
            (0: this rank's share counts for itself, as in an evaluation).
        told: of loader processes that died, and were replaced.
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
        told: Told = lambda text: None,
        **options: object,
    ) -> None:
        self.dataset = dataset
        self.batches = batches
        self.step = 0  # global batches handed out since the start of training
        self.membership = membership
        self.consumed = consumed
        self.told = told
        self.options = options
        self._fetcher = Fetcher(dataset, batches, options, told)
        self._evaluation: EvaluationView | None = None

    def __len__(self) -> int:
        """Batches in one pass: the same number on every rank."""
        return self.batches.steps

    def __iter__(self) -> Iterator[object]:
        """Go on from the cursor to the end of the pass."""
        rank, world_size = self.membership()
        end = (self.step // self.batches.steps + 1) * self.batches.steps
        span = range(self.step, end)
        for step, batch in zip(span, self._fetcher.fetch(span, rank, world_size), strict=True):
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
        # Its own: the trainer may be in the middle of a pass.
        self._fetcher = Fetcher(loader.dataset, loader.batches, loader.options, loader.told)

    def __len__(self) -> int:
        """Batches of this rank; may be 0."""
        batches = self._of.batches
        return batches.steps - (1 if self._size(batches.steps - 1) == 0 else 0)

    def __iter__(self) -> Iterator[object]:
        """The batches of this rank."""
        span = range(len(self))
        for step, batch in zip(span, self._fetcher.fetch(span, *self._of.membership()), strict=True):
            if self._of.consumed is not None:
                size = self._size(step)
                self._of.consumed(size, 0)
            yield batch

    def stand_ins(self) -> Iterator[object]:
        """Batches for a rank that has none while others have one, where all compute together; they do not count."""
        steps = self._of.batches.steps
        return self._fetcher.fetch(range(len(self), steps), *self._of.membership())

    def _size(self, step: int) -> int:
        return self._of.batches.size(step, *self._of.membership())
