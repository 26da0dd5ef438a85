"""The global sequence of batches, and one rank's slice of each: pure arithmetic on positions.

Step s of a pass consumes positions [s·G, min((s+1)·G, N)); rank r of W takes a contiguous slice of them, sizes
differing by at most one. Nothing here depends on the world size except the slice, so the order survives a change of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workers.data.permutation import permute

__all__ = ["GlobalBatches", "slice_of"]


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

    def total(self, step: int) -> int:
        """Samples in global batch `step`, counted from 0 over all passes."""
        return min(self.batch_size, self.samples - step % self.steps * self.batch_size)

    def size(self, step: int, rank: int, world_size: int) -> int:
        """Samples of global batch `step` that fall to a rank; may be 0 in a pass's last batch."""
        start, stop = slice_of(self.total(step), rank, world_size)
        return stop - start

    def indices(self, step: int, rank: int, world_size: int) -> list[int]:
        """The sample indices of global batch `step` that fall to a rank, in order."""
        start, stop = slice_of(self.total(step), rank, world_size)
        return self._at(step, start, stop)

    def stand_in(self, step: int) -> list[int]:
        """One real sample of global batch `step`, for a rank that has none and must still take part."""
        return self._at(step, 0, 1)

    def _at(self, step: int, start: int, stop: int) -> list[int]:
        which_pass, within = divmod(step, self.steps)
        first = within * self.batch_size
        positions = np.arange(first + start, first + stop, dtype=np.int64)
        if self.shuffle and positions.size:
            positions = permute(positions, self.samples, (self.seed << 32) + which_pass)
        return positions.tolist()  # type: ignore[no-any-return]
