"""Loader processes that die: seen at once, told, and made good; and given up where it is no use."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from pathlib import Path

import pytest
import torch

from workers.data.loader import GlobalLoader
from workers.data.sampler import GlobalBatches
from workers.errors import LoaderLostError

LENGTH = 24


class Numbers(torch.utils.data.Dataset):
    """Numbers with noise of the process that fetches; the processes that fetch some of them die, so many times."""

    def __init__(self, folder: Path, deaths: int = 0, ends: str = "kill") -> None:
        self.folder, self.deaths, self.ends = folder, deaths, ends

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 14 and len(list(self.folder.iterdir())) < self.deaths:
            (self.folder / str(os.getpid())).touch()
            if self.ends == "exit":
                os._exit(3)
            os.kill(os.getpid(), signal.SIGKILL)
        return index + torch.rand(1)


def loader_of(dataset: Numbers, told: list[str], **options: object) -> GlobalLoader:
    batches = GlobalBatches(samples=LENGTH, batch_size=4, shuffle=False, seed=0)
    return GlobalLoader(dataset, batches, lambda: (0, 1), told=told.append, num_workers=2, **options)


def values(loader: GlobalLoader) -> list[float]:
    return [value for batch in loader for value in batch.flatten().tolist()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", [{}, {"persistent_workers": False, "prefetch_factor": 1}])
def test_others_take_the_place_of_a_process_that_was_killed(tmp_path: Path, options: dict[str, object]) -> None:
    told: list[str] = []
    calm = values(loader_of(Numbers(tmp_path), told, **options))
    assert told == []
    loader = loader_of(Numbers(tmp_path, deaths=1), told, **options)
    assert values(loader) == calm
    (died,) = tmp_path.iterdir()
    assert [re.sub(r"[1-4]$", "…", text) for text in told] == [  # the first one that nobody had brought yet
        f"loader process {died.name} was ended by SIGKILL; others go on with batch …"
    ]
    assert len(values(loader)) == LENGTH  # the next pass


def test_a_process_that_dies_between_two_passes_is_missed_in_the_next_one(tmp_path: Path) -> None:
    told: list[str] = []
    loader = loader_of(Numbers(tmp_path), told)
    assert len(values(loader)) == LENGTH
    victim = multiprocessing.active_children()[0]
    victim.kill()
    victim.join()
    assert len(values(loader)) == LENGTH
    assert told == [f"loader process {victim.pid} was ended by SIGKILL; others go on with batch 7"]


def test_one_process_after_the_other_that_dies_over_a_batch_is_an_error_that_names_it(tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(LoaderLostError) as raised:
        values(loader_of(Numbers(tmp_path, deaths=99, ends="exit"), told))
    assert len(told) == len(list(tmp_path.iterdir())) - 1
    last = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns).name
    assert str(raised.value) == (
        "worker.loader: num_workers: expected loader processes that live while they fetch batch 4, received 3 deaths "
        f"in a row (loader process {last} ended with exit code 3); look at its samples on this rank (12, 13, 14, 15), "
        "and at the memory of this machine; with num_workers=0 the same samples are fetched where a debugger can see it"
    )
    assert multiprocessing.active_children() == []
