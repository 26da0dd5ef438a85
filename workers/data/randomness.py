"""Random numbers of one sample, keyed by (job seed, pass, sample index): what `sample_rng()` gives inside `dataset[i]`.

They do not depend on the rank, the world size, the number of loader processes or on when the run was resumed, so that
an augmentation drawn from them is the same in each of these cases. Which sample is fetched, `fetching.py` says.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property

import numpy as np
import torch as _torch

from workers.errors import ProgramError

__all__ = ["Fetch", "SampleRng", "during", "sample_rng"]


class SampleRng:
    """Generators of one sample, each made when it is first asked for.

    Args:
        seed: the job's seed.
        which_pass: number of the pass over the data, from 0; 0 in an evaluation.
        index: the sample.

    Example:
        >>> SampleRng(0, 3, 17).python.random() == SampleRng(0, 3, 17).python.random()
        True
    """

    def __init__(self, seed: int, which_pass: int, index: int) -> None:
        digest = hashlib.blake2b(f"{seed}/{which_pass}/{index}".encode()).digest()
        self._words = np.frombuffer(digest, dtype="<u8").tolist()  # eight of 64 bits, each for one use

    @cached_property
    def python(self) -> random.Random:
        """A generator of Python's `random`."""
        return random.Random(self._words[0])

    @cached_property
    def numpy(self) -> np.random.Generator:
        """A generator of NumPy."""
        return np.random.default_rng(self._words[1:3])

    @cached_property
    def torch(self) -> _torch.Generator:
        """A generator of torch, on the CPU."""
        generator = _torch.Generator()
        generator.manual_seed(self._words[3])
        return generator

    def seed_process(self) -> None:
        """Seed the generators that everybody in this process shares; only for processes that do nothing but load."""
        random.seed(self._words[4])
        np.random.seed([self._words[part] >> shift & 0xFFFFFFFF for part in (5, 6) for shift in (0, 32)])
        _torch.default_generator.manual_seed(self._words[7])  # not torch.manual_seed, which looks after accelerators


class Fetch:
    """The samples that are being fetched together.

    Args:
        seed: the job's seed.
        which_pass: number of the pass.
        seeds_process: whether the process-wide generators are seeded with every sample.
    """

    def __init__(self, seed: int, which_pass: int, *, seeds_process: bool) -> None:
        self._key = seed, which_pass
        self._seeds_process = seeds_process
        self._known: dict[int, SampleRng] = {}
        self.index: int | None = None  # None: a whole batch, without anyone having said which of it

    def begin(self, index: int) -> None:
        """This sample is fetched from now on."""
        self.index = index
        if self._seeds_process:
            self.rng(index).seed_process()

    def rng(self, index: int) -> SampleRng:
        """The generators of a sample: the same ones at every call, so that a second one goes on."""
        if index not in self._known:
            self._known[index] = SampleRng(*self._key, index)
        return self._known[index]


_fetch: ContextVar[Fetch | None] = ContextVar("rankfire_fetch", default=None)


@contextmanager
def during(fetch: Fetch) -> Iterator[Fetch]:
    """Inside this context `sample_rng` answers for this fetch."""
    token = _fetch.set(fetch)
    try:
        yield fetch
    finally:
        _fetch.reset(token)


def sample_rng(index: int | None = None) -> SampleRng:
    """Random numbers for the sample that is being fetched: call it inside `dataset[i]`, once or often.

    Seeded by the job's seed, the pass and the index of the sample, and by nothing else: two data sets of one job draw
    the same numbers for samples of the same index. An evaluation always draws those of pass 0.

    Args:
        index: which sample; needed only in a `__getitems__` that does not go through its indices one after the other,
            and in a data set inside of another one that fetches whole batches of it.

    Returns:
        An object with `.python`, `.numpy` and `.torch`, the generators of the three libraries.

    Raises:
        ProgramError: nothing is being fetched, or several samples at once and `index` does not say which.

    Example:
        >>> class Noisy:  # doctest: +SKIP
        ...     def __getitem__(self, index):
        ...         return self.images[index] + 0.1 * torch.randn(3, generator=sample_rng().torch)
    """
    fetch = _fetch.get()
    if fetch is None:
        raise ProgramError(
            "sample_rng(): expected a call inside dataset[i], while a loader of worker.loader fetches the sample, "
            "received one outside of it; draw in the data set, or use a generator of your own"
        )
    if index is None:
        index = fetch.index
    if index is None:
        raise ProgramError(
            "sample_rng(): expected the index of one sample, received none while a whole batch is fetched; "
            "call sample_rng(index) in __getitems__, or draw while going through its indices"
        )
    return fetch.rng(int(index))
