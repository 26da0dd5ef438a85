"""The data of a run as one iterator that stands where the run is.

Data that can be told where it is (`seek`, or a saved state) is told; any other is read up to there, with a
warning that says what it cost. When to fetch, and what a fetch may fire, is the engine's.
"""

from __future__ import annotations

import itertools
import operator
import time
import warnings
from collections.abc import Iterator
from typing import Any

from workers.errors import DataLoaderEmptyError, FastForwardWarning

__all__ = ["Feed", "is_endless", "is_stateful", "length_of"]


class Feed:
    """Batches of one data set.

    Args:
        data: any iterable; None gives None for ever.
        lives: whether one iterator goes on over the epochs; else every epoch begins with a new one.
        period: batches in one pass over the data, if known.
        held: a state that the data shall take up before it is read.
        standing: whether the data is the one that was read before, so that an iterator stands where it was
            left.

    Attributes:
        iterator: where the next batch comes from.
    """

    def __init__(
        self,
        data: Any,
        *,
        lives: bool = True,
        period: int | None = None,
        held: Any = None,
        standing: bool = False,
    ) -> None:
        self.data = data
        self.lives = lives
        self.iterator: Iterator[Any] | None = None
        self._period = period
        self._held = held
        self._standing = standing
        self._used = False
        self._replaced = False

    def begin_epoch(self, iteration: int) -> None:
        """Stand at the batch that follows `iteration` others."""
        if self.iterator is None:
            self.iterator = self._iter() if self._replaced else self._open(iteration)
        elif self._used and not self.lives:
            self.restart()
        self._used = True

    def stay(self) -> None:
        """The next epoch to begin is the one that is being read: go on in it."""
        self._used = False

    def resume(self) -> Iterator[Any]:
        """The iterator; a new one if the data was replaced."""
        if self.iterator is None:
            self.restart()
        assert self.iterator is not None
        return self.iterator

    def restart(self) -> None:
        """Begin another pass."""
        self.iterator = self._iter()

    def skip_epoch(self) -> None:
        """The rest of the epoch is left out: data with `seek` moves on, a living iterator just goes on."""
        if hasattr(self.data, "seek"):
            self.iterator = None

    def replace(self, data: Any) -> None:
        """Go on with other data, from its beginning."""
        self.data = data
        self.iterator = None
        self._replaced = True

    def _open(self, iteration: int) -> Iterator[Any]:
        if hasattr(self.data, "seek"):
            self.data.seek(iteration)
            return self._iter()
        if iteration == 0 or self.data is None:
            return self._iter()
        if self._held is not None:
            self.data.load_state_dict(self._held)
            return self._iter()
        iterator = self._iter()
        left_there = self._standing and iterator is self.data
        return iterator if left_there else self._fast_forward(iterator, iteration)

    def _iter(self) -> Iterator[Any]:
        iterator: Iterator[Any] = itertools.repeat(None) if self.data is None else iter(self.data)
        return iterator

    def _fast_forward(self, iterator: Iterator[Any], iteration: int) -> Iterator[Any]:
        """Read up to the place: only what is left after whole passes, if their length is known."""
        batches = iteration % self._period if self._period else iteration
        started = time.perf_counter()
        for done in range(batches):
            if _skip(iterator):
                continue
            iterator = iter(self.data)
            if not _skip(iterator):
                raise DataLoaderEmptyError(
                    f"run(data): reading up to iteration {iteration}, the data gave {done} batches, and "
                    f"none when it was begun anew; expected data that can be read again"
                )
        if batches:
            warnings.warn(
                f"run(data): {batches} batches were read and thrown away in "
                f"{time.perf_counter() - started:.1f} s to go on after iteration {iteration}; "
                f"data with seek(iteration), or with state_dict() and load_state_dict(), needs none of that",
                FastForwardWarning,
                stacklevel=2,
            )
        return iterator

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no iterator: data with a state takes it up, other data is read up to its place."""
        held = self.data.state_dict() if is_stateful(self.data) else None
        return {**self.__dict__, "iterator": None, "_used": False, "_standing": False, "_held": held}


def _skip(iterator: Iterator[Any]) -> bool:
    """Throw a batch away, if there is one; an iterator that counts what it hands out has a way not to count it."""
    try:
        getattr(iterator, "skip", iterator.__next__)()
    except StopIteration:
        return False
    return True


def length_of(data: Any) -> int | None:
    """`len(data)`, or None if it has none."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def is_stateful(thing: object) -> bool:
    """Whether a thing has a state that can be taken and given back."""
    return hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")


def is_endless(data: Any) -> bool:
    """Whether the data is known never to end: `itertools.count`, `cycle`, or `repeat` without a number."""
    if isinstance(data, itertools.repeat):
        return operator.length_hint(data, -1) < 0
    return isinstance(data, (itertools.count, itertools.cycle))
