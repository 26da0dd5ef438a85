"""The global sequence of batches, and one rank's slice of each: pure arithmetic on positions.

Step s of a pass consumes positions [s·G, min((s+1)·G, N)); rank r of W takes a contiguous slice of them, sizes
differing by at most one. Nothing here depends on the world size except the slice, so the order survives a change of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from workers.data.permutation import permute

__all__ = ["GlobalBatches", "slice_of"]

BLOCK = 4096  # positions that are permuted in one go: about a millisecond, which is what 32 alone take too


def slice_of(total: int, rank: int, world_size: int) -> tuple[int, int]:
    """The half-open slice of 0 … total-1 that belongs to a rank; the first ranks get the extra ones.

    Example:
        >>> [slice_of(10, r, 3) for r in range(3)]
        [(0, 4), (4, 7), (7, 10)]
    """
    each, extra = divmod(total, world_size)
    start = rank * each + min(rank, extra)
    return start, start + each + (rank < extra)


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalBatches:
    """The batches of a data set of `samples` samples, the same on every rank.

    Args:
        samples: N, the size of the data set, at least 1.
        batch_size: G, samples per global batch, over all ranks.
        shuffle: whether each pass has an order of its own, drawn from (seed, pass).
        seed: key of the order.
        drop_last: whether the last, smaller batch of a pass is left out.
    """

    samples: int
    batch_size: int
    shuffle: bool
    seed: int
    drop_last: bool = False

    @property
    def steps(self) -> int:
        """Global batches in one pass over the data."""
        full, rest = divmod(self.samples, self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def position(self, step: int) -> int:
        """Samples in the first `step` global batches since the start of training, over all passes."""
        passes, within = divmod(step, self.steps)
        return passes * min(self.samples, self.steps * self.batch_size) + within * self.batch_size

    def total(self, step: int) -> int:
        """Samples in global batch `step`, counted from 0 over all passes."""
        return min(self.batch_size, self.samples - step % self.steps * self.batch_size)

    def size(self, step: int, rank: int, world_size: int) -> int:
        """Samples of global batch `step` that fall to a rank; may be 0 in a pass's last batch."""
        start, stop = slice_of(self.total(step), rank, world_size)
        return stop - start

    def walk(self, steps: range, rank: int, world_size: int) -> Iterator[list[int]]:
        """The sample indices of successive global batches that fall to a rank, in order.

        Args:
            steps: numbers of the batches, all in the same pass; computed a block at a time, so nothing large is held.
            rank: which rank.
            world_size: how many ranks share each batch.
        """
        each = max(1, BLOCK * world_size // self.batch_size)
        for first in range(steps.start, steps.stop, each):
            block = range(first, min(first + each, steps.stop))
            slices = [slice_of(self.total(step), rank, world_size) for step in block]
            indices, taken = self._at(block, slices), 0
            for start, stop in slices:
                yield indices[taken : taken + stop - start]
                taken += stop - start

    def stand_in(self, step: int) -> list[int]:
        """One real sample of global batch `step`, for a rank that has none and must still take part."""
        return self._at(range(step, step + 1), [(0, 1)])

    def _at(self, steps: range, slices: list[tuple[int, int]]) -> list[int]:
        """The samples at a slice of each of some batches of one pass, one after the other."""
        which_pass, within = divmod(steps.start, self.steps)
        assert within + len(steps) <= self.steps, "the order of another pass has another key"
        firsts = range(within * self.batch_size, self.samples, self.batch_size)
        parts = [np.arange(f + start, f + stop) for f, (start, stop) in zip(firsts, slices, strict=False)]
        positions = np.concatenate(parts)
        if self.shuffle:
            positions = permute(positions, self.samples, (self.seed << 32) + which_pass)
        return positions.tolist()  # type: ignore[no-any-return]
