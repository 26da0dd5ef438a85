"""Fetching what the global sequence names: a torch `DataLoader` that is told samples, and their random key, by a plan.

Collating, loader processes and pinned memory are torch's. Who asks for which span, and why, is in `loader.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.utils.data import DataLoader, get_worker_info

from workers.data.carried import Carried
from workers.data.processes import LoaderProcess, end_with, forget_names, forkserver
from workers.data.randomness import Fetch, during
from workers.data.sampler import GlobalBatches

__all__ = ["Fetcher", "SizedDataset"]


class SizedDataset(Protocol):
    """A map-style data set: what torch's `DataLoader` needs, with a length."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int, /) -> object:
        """One sample."""
        ...


class Fetcher:
    """Fetches spans of the global sequence; its torch `DataLoader` is made once, and its loader processes stay.

    Args:
        dataset: map-style data set.
        batches: the global sequence.
        options: for torch's `DataLoader`.
    """

    def __init__(self, dataset: SizedDataset, batches: GlobalBatches, options: Mapping[str, object]) -> None:
        self._dataset = dataset
        self._batches = batches
        self._options = options
        self._plan = _Plan(batches)
        self._seen: object = None
        self._named = False  # whether its processes' semaphores have names yet
        self.loader: DataLoader[object] | None = None

    def fetch(self, span: range, rank: int, world_size: int) -> Iterator[object]:
        """A rank's batches of the steps in a span, which lies in one pass."""
        if self.loader is None:
            self.loader = self._make()
        self._plan.span, self._plan.rank, self._plan.world_size = span, rank, world_size
        iterator = iter(self.loader)
        if iterator is not self._seen and self.loader.num_workers:
            end_with(iterator)
            self._seen = iterator if self.loader.persistent_workers else None
            self._named = True
            return self._begin(iterator, self.loader.num_workers)
        if self._named:  # the first span was too short; to begin another one torch has heard from all of them
            self._forget(iterator)
        return iterator

    def _begin(self, iterator: Iterator[object], processes: int) -> Iterator[object]:
        """The batches of a new iterator; its processes take turns, so after one from each all are at work."""
        for number, batch in enumerate(iterator, start=1):
            if number == processes:
                self._forget(iterator)
            yield batch

    def _forget(self, iterator: Iterator[object]) -> None:
        forget_names(iterator)
        self._named = False

    def _make(self) -> DataLoader[object]:
        options = dict(self._options)
        if options.get("num_workers"):
            if options.get("multiprocessing_context") is None:
                options["multiprocessing_context"] = forkserver()
            options.setdefault("persistent_workers", True)
            for name, carry in _CROSSING.items():
                options[name] = carry(options.get(name))
        generator = torch.Generator()  # else every iter() draws from the trainer's global random numbers
        generator.manual_seed(self._batches.seed)
        dataset = _Keyed(self._dataset, self._batches.seed)
        return DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_sampler=self._plan,  # type: ignore[arg-type]
            generator=generator,
            **options,  # type: ignore[arg-type]
        )


_CROSSING: dict[str, Callable[..., object]] = {
    "collate_fn": lambda function: None if function is None else Carried(function),
    "worker_init_fn": LoaderProcess,
}


@dataclass(frozen=True, slots=True)
class _Picks:
    """The samples of one batch of this rank, and the pass that they belong to."""

    which_pass: int
    indices: list[int]


class _Plan:
    """The picks of the coming span; torch's DataLoader asks for them as it goes, so nothing is held."""

    def __init__(self, batches: GlobalBatches) -> None:
        self.batches = batches
        self.span = range(0)
        self.rank = 0
        self.world_size = 1

    def __iter__(self) -> Iterator[_Picks]:
        shares = self.batches.walk(self.span, self.rank, self.world_size)
        for step, indices in zip(self.span, shares, strict=True):
            yield _Picks(step // self.batches.steps, indices or self.batches.stand_in(step))

    def __len__(self) -> int:
        return len(self.span)


class _Keyed:
    """The user's data set, each sample fetched with its random key in place.

    Args:
        wrapped: the data set.
        seed: the job's seed.
    """

    def __init__(self, wrapped: SizedDataset, seed: int) -> None:
        self.wrapped = wrapped
        self.seed = seed

    def __len__(self) -> int:
        return len(self.wrapped)

    def __getitems__(self, picks: _Picks) -> object:
        alone = get_worker_info() is not None  # a loader process: nobody else draws from its generators
        with during(Fetch(self.seed, picks.which_pass, seeds_process=alone)) as fetch:
            indices = _Told(picks.indices, fetch)
            together: Callable[[list[int]], object] | None = getattr(self.wrapped, "__getitems__", None)
            if together is None:
                return [self.wrapped[index] for index in indices]
            if alone:  # for what is drawn before, or without, going through the indices one by one
                fetch.rng(picks.indices[0]).seed_process()
            return together(indices)

    def __getstate__(self) -> dict[str, object]:
        return {"wrapped": Carried(self.wrapped), "seed": self.seed}


class _Told(list[int]):
    """Indices that tell a fetch which one of them is at work while somebody goes through them."""

    def __init__(self, indices: list[int], fetch: Fetch) -> None:
        super().__init__(indices)
        self._fetch = fetch

    def __iter__(self) -> Iterator[int]:
        try:
            for index in super().__iter__():
                self._fetch.begin(index)
                yield index
        finally:
            self._fetch.index = None

    def __reduce__(self) -> tuple[type[list[int]], tuple[list[int]]]:
        return list, ([*super().__iter__()],)
