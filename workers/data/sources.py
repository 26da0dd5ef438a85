"""Data that a rank brings itself: batches that some other loader made, handed out and counted here.

Nothing is dealt out over ranks: each reads its own. `opening.py` decides what gets wrapped in what; how exactly each
resumes is told in the README's table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch

from workers.data.replay import Replayable
from workers.errors import ProgramError
from workers.rng import capture_rng, restore_rng

__all__ = [
    "Consumed",
    "HandedOut",
    "NoPart",
    "RankBatches",
    "SplitBatches",
    "StatefulBatches",
    "StatefulLoader",
    "TorchBatches",
    "size_of",
]

_CPU = torch.device("cpu")  # whose generators loaders draw from
Consumed = Callable[[int, int], None]  # (samples here, samples of the batch over all that share it; 0: who knows)


@runtime_checkable
class StatefulLoader(Protocol):
    """A loader that knows its place, like torchdata's `StatefulDataLoader`."""

    def __iter__(self) -> Iterator[Any]:
        """Its batches, from its place on."""
        ...

    def state_dict(self) -> Any:
        """Its place."""
        ...

    def load_state_dict(self, state: Any, /) -> object:
        """Take up a place."""
        ...


@runtime_checkable
class TorchBatches(Protocol):
    """One rank's part of a Ray data set: what `streaming_split` gives."""

    def iter_torch_batches(self, *, batch_size: int, drop_last: bool, **options: Any) -> Iterable[Any]:
        """Batches of one pass."""
        ...


class HandedOut(Replayable):
    """An iterator that tells of every batch which it hands out.

    Args:
        batches: where they come from.
        consumed: told of each batch's samples.
    """

    def __init__(self, batches: Iterator[Any], consumed: Consumed) -> None:
        super().__init__(batches)
        self._consumed = consumed

    def __iter__(self) -> HandedOut:
        return self

    def __next__(self) -> Any:
        batch = self.next()
        size = size_of(batch)
        self._consumed(size, 0)
        return batch

    def skip(self) -> None:
        """Read one batch on and throw it away: nobody consumed it."""
        self.next()


class RankBatches:
    """Any iterable of batches; each `iter()` is one pass.

    Args:
        data: gives batches of this rank.
        consumed: told of each batch's samples.

    Attributes:
        began: the generators as they were when the pass began that is being read; a torch DataLoader draws its order
            from them.
    """

    def __init__(self, data: Iterable[Any], consumed: Consumed) -> None:
        self.data = data
        self._consumed = consumed
        self.began: Mapping[str, Any] | None = None
        self._again: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        """Batches in one pass.

        Raises:
            TypeError: the data can't tell.
        """
        return len(self.data)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        """One pass."""
        again, self._again = self._again, None
        if again is not None:
            return PassAgain(self, again, self._consumed)
        self.began = capture_rng(_CPU)
        return HandedOut(iter(self.data), self._consumed)

    def read_again(self, began: Mapping[str, Any] | None) -> None:
        """The next `iter()` reads a pass again that was left in its middle.

        Args:
            began: what `began` was then; None if there was no pass.
        """
        self._again = began


class PassAgain(HandedOut):
    """A pass that is read up to where it was left, in its order; the generators are then as they are now.

    Whether it was left in its middle, whoever reads it knows: who skips nothing begins the next pass.

    Args:
        of: whose pass it is.
        began: the generators as they were when it began.
        consumed: told of each batch's samples.
    """

    def __init__(self, of: RankBatches, began: Mapping[str, Any], consumed: Consumed) -> None:
        super().__init__(iter(()), consumed)
        self._of = of
        self._began = began
        self._open = False
        self._then: Mapping[str, Any] | None = None  # the generators as they shall be when nothing more is skipped

    def __next__(self) -> Any:
        if not self._open:
            self._begin(capture_rng(_CPU))
        if self._then is not None:
            restore_rng(self._then, _CPU)
            self._then = None
        return super().__next__()

    def skip(self) -> None:
        """Read one batch on and throw it away."""
        if not self._open:
            self._then = capture_rng(_CPU)
            restore_rng(self._began, _CPU)
            self._begin(self._began)
        super().skip()

    def _begin(self, began: Mapping[str, Any]) -> None:
        self._of.began = began
        self._batches = iter(self._of.data)
        self._open = True


class StatefulBatches(RankBatches):
    """A loader that knows its place: saved with every checkpoint, and taken up again exactly."""

    data: StatefulLoader

    def __init__(self, data: StatefulLoader, consumed: Consumed) -> None:
        super().__init__(data, consumed)
        self._taken_up = False

    def __iter__(self) -> Iterator[Any]:
        """One pass, or the rest of the one whose state was taken up; if that has no batch left, the next one."""
        if not self._taken_up:
            return HandedOut(iter(self.data), self._consumed)
        self._taken_up = False
        now = capture_rng(_CPU)
        batches = iter(self.data)  # a loader draws from the generators when a pass begins, but this one began before
        restore_rng(now, _CPU)
        return HandedOut(self._or_next_pass(batches), self._consumed)

    def state_dict(self) -> Any:
        """The loader's place."""
        return self.data.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Take up a place; the next `iter()` goes on there."""
        self.data.load_state_dict(state)
        self._taken_up = True

    def _or_next_pass(self, batches: Iterator[Any]) -> Iterator[Any]:
        """A checkpoint at the end of an epoch: an engine stops before it asks for the batch that is not there."""
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            yield from self.data


class SplitBatches:
    """A rank's part of a Ray data set as an iterable of batches.

    Args:
        data: this rank's iterator.
        batch_size: samples of this rank in a batch.
        options: for `iter_torch_batches`.
    """

    def __init__(self, data: TorchBatches, batch_size: int, options: Mapping[str, Any]) -> None:
        self.data = data
        self.batch_size = batch_size
        self.options = options

    def __iter__(self) -> Iterator[Any]:
        """One pass; all ranks must begin theirs before any of them gets a batch."""
        return iter(self.data.iter_torch_batches(batch_size=self.batch_size, **self.options))


class NoPart:
    """What stands for the part of a rank that has none: a spare, which builds its program like all others.

    Args:
        name: of the data set.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def iter_torch_batches(self, *, batch_size: int, drop_last: bool, **options: Any) -> Iterable[Any]:
        """Refuse.

        Raises:
            ProgramError: always.
        """
        raise ProgramError(
            f"dataset {self.name!r}: expected a rank that trains, received a spare, which has no part of it; "
            "read it in an engine, not in build(worker)"
        )


def size_of(batch: object) -> int:
    """Samples in a batch: the length of the first array or tensor in it; 1 if there is none.

    Example:
        >>> size_of({"x": torch.zeros(5, 3), "y": torch.zeros(5)})  # doctest: +SKIP
        5
    """
    return _size_of(batch) or 1


def _size_of(batch: object) -> int | None:
    shape = getattr(batch, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) else None
    parts: Iterable[object] = ()
    if isinstance(batch, Mapping):
        parts = batch.values()
    elif isinstance(batch, tuple | list):
        parts = batch
    return next((size for size in map(_size_of, parts) if size is not None), None)
