"""Fetching what the global sequence names: a torch `DataLoader` that is told samples, and their random key, by a plan.

Collating, loader processes and pinned memory are torch's. Who asks for which span, and why, is in `loader.py`. What a
loader process would have fetched is known from the plan, so one that dies is replaced, and nobody misses a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch.utils.data import get_worker_info

from workers.data.carried import Carried
from workers.data.processes import LoaderProcess, end_with, forget_names, forkserver
from workers.data.randomness import Fetch, during
from workers.data.sampler import GlobalBatches
from workers.data.watched import ProcessesLost, WatchedLoader
from workers.errors import LoaderLostError

__all__ = ["Fetcher", "SizedDataset", "Told"]

TRIES = 3  # processes that die one after the other over the same batch; then the data is at fault
Told = Callable[[str], None]
"""Is told, in words, what was mended."""


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
        told: of loader processes that died, and were replaced.
    """

    def __init__(
        self,
        dataset: SizedDataset,
        batches: GlobalBatches,
        options: Mapping[str, object],
        told: Told = lambda text: None,
    ) -> None:
        self._dataset = dataset
        self._batches = batches
        self._options = options
        self._told = told
        self._plan = _Plan(batches)
        self._seen: object = None
        self._iterator: Iterator[object] | None = None  # the last one that the loader has made
        self._named = False  # whether its processes' semaphores have names yet
        self._alone = False  # whether there is but one process, which brings what it is asked for and no more
        self.loader: WatchedLoader | None = None

    def fetch(self, span: range, rank: int, world_size: int) -> Iterator[object]:
        """A rank's batches of the steps in a span, which lies in one pass.

        Raises:
            LoaderLostError: one process after the other dies over the same batch.
        """
        tried = careful = 0
        while span:
            try:
                for batch in self._iterate(span[:1] if careful else span, rank, world_size, alone=careful > 0):
                    span, tried = span[1:], 0
                    yield batch
                careful -= careful > 0
            except ProcessesLost as lost:
                if self._named and self._iterator is not None:
                    forget_names(self._iterator)  # not when it is collected, which may be late
                self._drop()
                tried += 1
                if tried == TRIES:
                    raise LoaderLostError(self._verdict(str(lost), span[0], rank, world_size)) from lost
                if tried == TRIES - 1 and not careful:  # they have not come far: which batch is it?
                    careful = self._ahead
                self._told(f"{lost}; others go on with batch {span[0] + 1}")

    def _iterate(self, span: range, rank: int, world_size: int, *, alone: bool) -> Iterator[object]:
        """The batches of a span, as long as the processes live; or those of one process that does not run ahead."""
        if alone != self._alone:
            self._drop()
        if self.loader is None:
            self.loader, self._alone = self._make(alone=alone), alone
        self._plan.span, self._plan.rank, self._plan.world_size = span, rank, world_size
        iterator = self._iterator = iter(self.loader)
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

    def _verdict(self, how: str, step: int, rank: int, world_size: int) -> str:
        """What is said when it is no use to try again."""
        samples = next(iter(self._batches.walk(range(step, step + 1), rank, world_size)))
        return (
            f"worker.loader: num_workers: expected loader processes that live while they fetch batch {step + 1}, "
            f"received {TRIES} deaths in a row ({how}); look at its samples on this rank ({_some(samples)}), and at "
            "the memory of this machine; with num_workers=0 the same samples are fetched where a debugger can see it"
        )

    @property
    def _ahead(self) -> int:
        """Batches that the processes fetch before they are asked for."""
        return cast(int, self._options["num_workers"]) * cast(int, self._options.get("prefetch_factor") or 2)

    def _drop(self) -> None:
        self.loader, self._seen, self._iterator, self._named = None, None, None, False

    def _make(self, *, alone: bool) -> WatchedLoader:
        options = dict(self._options) | ({"num_workers": 1, "prefetch_factor": 1} if alone else {})
        if options.get("num_workers"):
            if options.get("multiprocessing_context") is None:
                options["multiprocessing_context"] = forkserver()
            options.setdefault("persistent_workers", True)
            for name, carry in _CROSSING.items():
                options[name] = carry(options.get(name))
        generator = torch.Generator()  # else every iter() draws from the trainer's global random numbers
        generator.manual_seed(self._batches.seed)
        dataset = _Keyed(self._dataset, self._batches.seed)
        return WatchedLoader(
            dataset,  # type: ignore[arg-type]
            batch_sampler=self._plan,  # type: ignore[arg-type]
            generator=generator,
            **options,  # type: ignore[arg-type]
        )


_CROSSING: dict[str, Callable[..., object]] = {
    "collate_fn": lambda function: None if function is None else Carried(function),
    "worker_init_fn": LoaderProcess,
}


def _some(samples: list[int], most: int = 8) -> str:
    return ", ".join(map(str, samples[:most])) + (f", … {len(samples)} in all" if len(samples) > most else "")


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
