"""From what a user gives `worker.loader` to a loader: which kind of source it is, and whether the arguments fit it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch.utils.data import IterableDataset

from workers.data.fetching import SizedDataset, Told
from workers.data.loader import GlobalLoader, Membership
from workers.data.sampler import GlobalBatches, slice_of
from workers.data.sources import (
    Consumed,
    HandedOut,
    RankBatches,
    SplitBatches,
    StatefulBatches,
    StatefulLoader,
    TorchBatches,
)
from workers.errors import ProgramError

__all__ = ["Wish", "open_source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """The arguments of `worker.loader` beside the source."""

    global_batch_size: object
    shuffle: bool
    drop_last: bool
    options: Mapping[str, Any]


def open_source(
    source: object, wish: Wish, *, seed: int, membership: Membership, consumed: Consumed, told: Told = lambda text: None
) -> GlobalLoader | RankBatches | HandedOut:
    """Make the loader of a source.

    Args:
        source: a map-style data set, a Stateful loader, an iterable of batches, or a rank's part of a Ray data set.
        wish: the user's arguments.
        seed: the job's seed.
        membership: tells (rank, world size).
        consumed: told of what is handed out.
        told: of loader processes that died, and were replaced.

    Raises:
        ProgramError: it is none of these, or the arguments do not fit it.
    """
    if isinstance(source, TorchBatches):
        return _ray_data(source, wish, membership, consumed)
    if _is_map_style(source):
        return GlobalLoader(
            cast(SizedDataset, source),
            _batches(cast(SizedDataset, source), wish, seed, membership),
            membership,
            consumed=consumed,
            told=told,
            **wish.options,
        )
    if not isinstance(source, Iterable):
        raise ProgramError(
            "worker.loader: source: expected a map-style data set (len(data) and data[i]), an iterable of batches, a "
            f"Stateful loader or a rank's part of a Ray data set, received {_kind(source)}; give it one of these"
        )
    _check_own(source, wish)
    if isinstance(source, StatefulLoader):
        return StatefulBatches(source, consumed)
    if isinstance(source, Iterator):  # can be read once, so it stands where it was left
        return HandedOut(source, consumed)
    return RankBatches(source, consumed)


def _is_map_style(source: object) -> bool:
    """An `IterableDataset` has `__getitem__` too: it inherits one that only raises."""
    return hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, IterableDataset)


def _batches(dataset: SizedDataset, wish: Wish, seed: int, membership: Membership) -> GlobalBatches:
    samples = len(dataset)
    if samples == 0:
        raise ProgramError(
            "worker.loader: dataset: expected at least one sample, received an empty data set; give data that has one"
        )
    batch_size = _checked_size(wish.global_batch_size, membership()[1])
    if wish.drop_last and samples < batch_size:
        raise ProgramError(
            f"worker.loader: drop_last: expected at least one whole batch of {batch_size} samples, received data of "
            f"{samples}, of which nothing would be left; make the batch smaller, or keep the last one"
        )
    return GlobalBatches(
        samples=samples, batch_size=batch_size, shuffle=wish.shuffle, seed=seed, drop_last=wish.drop_last
    )


def _checked_size(size: object, world_size: int) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        received = "none" if size is None else repr(size)
        raise ProgramError(
            f"worker.loader: global_batch_size: expected a positive whole number, received {received}; "
            "give the number of samples that all ranks together take in one step"
        )
    if size < world_size:
        raise ProgramError(
            f"worker.loader: global_batch_size: expected at least one sample for each of the {world_size} "
            f"ranks, received {size}; it counts the samples of all ranks together: raise it, or use "
            "fewer workers"
        )
    return size


def _ray_data(source: TorchBatches, wish: Wish, membership: Membership, consumed: Consumed) -> RankBatches:
    rank, world_size = membership()
    size = _checked_size(wish.global_batch_size, world_size)
    if size % world_size:
        raise ProgramError(
            f"worker.loader: global_batch_size: expected a multiple of the {world_size} ranks with Ray Data, which "
            f"gives each of them equally many rows, received {size}; else some would have more batches than others: "
            f"take {size - size % world_size} or {size + world_size - size % world_size}"
        )
    if wish.shuffle:
        raise ProgramError(
            "worker.loader: shuffle: expected False with Ray Data, whose order is its own, received True; shuffle with "
            "ds.randomize_block_order() or ds.random_shuffle() on the driver, or give local_shuffle_buffer_size"
        )
    start, stop = slice_of(size, rank, world_size)
    options = {"device": "cpu", "drop_last": wish.drop_last, **wish.options}
    return RankBatches(SplitBatches(source, stop - start, options), consumed)


def _check_own(source: object, wish: Wish) -> None:
    """Every rank brings its own batches: there is nothing to share out, to shuffle or to configure."""
    if wish.global_batch_size is not None:
        raise ProgramError(
            f"worker.loader: global_batch_size: expected none with {_kind(source)}, which brings batches of its own on "
            f"every rank, received {wish.global_batch_size!r}; leave it out and set the size there (for samples: "
            "DataLoader(data, batch_size=...)), or give a map-style data set, which is shared out"
        )
    given = {**{name: True for name in ("shuffle", "drop_last") if getattr(wish, name)}, **wish.options}
    if given:
        raise ProgramError(
            f"worker.loader: {', '.join(given)}: expected no options with {_kind(source)}, which brings batches of its "
            f"own, received {', '.join(f'{name}={value!r}' for name, value in given.items())}; set them there"
        )


def _kind(source: object) -> str:
    return type(source).__name__
