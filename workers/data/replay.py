"""An iterator that can go back: it keeps the last batches that it read, for a rank that is rewound in its process.

An iterator can be read once, so what it gave is lost unless somebody keeps it. How far back a rewind can go is
said by the ring of snapshots, through `keep`; before that nothing is kept.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from workers.errors import DataLoaderEmptyError, FastForwardWarning
from workers.rng import capture_rng, restore_rng

__all__ = ["Replayable"]

_CPU = torch.device("cpu")  # whose generators make batches


class Replayable:
    """Batches of an iterator, the last of which can be had again.

    Args:
        batches: where they come from.

    Attributes:
        read: batches read so far, thrown away ones too.

    Example:
        >>> batches = Replayable(iter("abcd"))
        >>> batches.keep(0)
        >>> [batches.next() for _ in range(3)]
        ['a', 'b', 'c']
        >>> batches.go_to(1)
        >>> [batches.next() for _ in range(3)]
        ['b', 'c', 'd']
    """

    def __init__(self, batches: Iterator[Any]) -> None:
        self.read = 0
        self._batches = batches
        self._kept: deque[_Kept] | None = None  # None: nobody asked
        self._behind = 0  # of the kept ones, those that are to be had again

    def next(self) -> Any:
        """The next batch, or one that was read before; `StopIteration` at the end."""
        if self._behind:
            assert self._kept is not None, "only what was kept can be had again"
            batch = self._kept[-self._behind].again()
            self._behind -= 1
        elif self._kept is None:
            batch = next(self._batches)
        else:
            batch = self._keep_next(self._kept)
        self.read += 1
        return batch

    def keep(self, since: int) -> None:
        """Keep what is read from now on, so that `go_to` can go back.

        Args:
            since: what need not be kept any more: the first so many batches.
        """
        kept = self._kept = deque() if self._kept is None else self._kept
        while len(kept) > max(0, self.read + self._behind - since):
            kept.popleft()

    def go_to(self, read: int) -> None:
        """Stand after so many batches: kept ones come again, missing ones are read and thrown away.

        Raises:
            DataLoaderEmptyError: the data ends before.
        """
        if read > self.read:
            self._read_up_to(read)
            return
        behind = self._behind + self.read - read
        kept = 0 if self._kept is None else len(self._kept)
        assert behind <= kept, f"to go back {behind} batches, as many must be kept, not {kept}"
        self.read, self._behind = read, behind

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take up the place of a snapshot. There is no `state_dict`: a checkpoint can't bring an iterator back."""
        self.go_to(state["read"])

    def _keep_next(self, kept: deque[_Kept]) -> Any:
        before = capture_rng(_CPU)
        batch = next(self._batches)
        after = capture_rng(_CPU)
        kept.append(_Kept(copy.deepcopy(batch), None if _equal(before, after) else after))
        return batch

    def _read_up_to(self, read: int) -> None:
        missing, started = read - self.read, time.perf_counter()
        for _ in range(missing):
            try:
                self.next()
            except StopIteration:
                raise DataLoaderEmptyError(
                    f"worker.loader: expected {read} batches or more, after which training goes on, received "
                    f"{self.read} from {type(self._batches).__name__}; give an iterator that is as long on every rank"
                ) from None
        warnings.warn(
            f"worker.loader: {missing} batches were read and thrown away in {time.perf_counter() - started:.1f} s to "
            "go on where the lost rank was; a map-style data set needs none of that",
            FastForwardWarning,
            stacklevel=2,
        )


class _Kept(NamedTuple):
    """A batch as it was, since a step may work on it in place; and the generators after it, if making it drew."""

    batch: Any
    rng: Mapping[str, Any] | None

    def again(self) -> Any:
        if self.rng is not None:
            restore_rng(self.rng, _CPU)
        return copy.deepcopy(self.batch)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and any(isinstance(item, list | torch.Tensor) for item in one):
        return all(map(_equal, one, other))
    return bool(one == other)
