"""What is lost before training: a spare is forgotten, somebody stands in for a rank, and the bits are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import RecoveryError, WorkerLostError
from tests.process_ranks import ProcessGroup
from tests.recovery.jobs import Ended, Job, run, until_committed
from tests.recovery.program import Fault

HANGS = {"hang_timeout": 1.0}
SAVED = {2: until_committed}  # the checkpoint of the first epoch, before the second one is begun


def unchanged(job: Job, folder: Path, calm: Callable[[Job], Ended]) -> Ended:
    """The run trained to its end, to the bits of one to which nothing happened."""
    ended, quiet = run(job, folder), calm(job)
    assert ended.error is None
    assert (ended.digests, ended.metrics, ended.called) == (quiet.digests, quiet.metrics, quiet.called)
    assert ended.consumed == quiet.consumed
    return ended


class KilledAtStart(ProcessGroup):
    """The last worker is killed before it says a word."""

    def start(self) -> None:
        super().start()
        self.signal(self.size - 1)


def test_a_worker_that_dies_before_it_is_up_is_not_needed_where_there_is_a_spare(tmp_path: Path, calm: Any) -> None:
    ended = unchanged(Job(group=KilledAtStart), tmp_path / "job", calm)
    assert [(line["rank"], line["cause"]) for line in ended.told("SPARE_LOST")] == [(None, "crash")]
    assert ended.told("WORKER_LOST") == []


def test_without_a_spare_a_worker_that_dies_before_it_is_up_ends_the_run(tmp_path: Path) -> None:
    ended = run(Job(workers={"count": 2}, group=KilledAtStart), tmp_path / "job")
    assert isinstance(ended.error, WorkerLostError)


@pytest.mark.parametrize(("how", "cause"), [("kill", "crash"), ("stop", "hang")])
def test_a_spare_that_is_lost_while_it_builds_is_forgotten(tmp_path: Path, calm: Any, how: str, cause: str) -> None:
    fault = Fault(where="build", iteration=0, rank=2, how=how)
    ended = unchanged(Job(faults=[fault], recovery=HANGS), tmp_path / "job", calm)
    assert ended.fired == [str(fault)]
    assert [(line["rank"], line["cause"]) for line in ended.told("SPARE_LOST")] == [(None, cause)]
    assert ended.told("WORKER_LOST") == []


@pytest.mark.parametrize("spares", [1, 0])
def test_somebody_stands_in_for_a_rank_that_dies_while_it_builds(tmp_path: Path, calm: Any, spares: int) -> None:
    fault = Fault(where="build", iteration=0, rank=1)
    ended = unchanged(Job(workers={"count": 2, "spares": spares}, faults=[fault]), tmp_path / "job", calm)
    assert ended.fired == [str(fault)]
    assert [(line["rank"], line["cause"]) for line in ended.told("WORKER_LOST")] == [(1, "crash")]
    assert [line["rank"] for line in ended.told("WORKER_JOINED")] == [0, 1]


def test_a_rank_that_stops_while_all_build_is_named_with_stacks_and_replaced(tmp_path: Path, calm: Any) -> None:
    fault = Fault(where="build", iteration=0, rank=1, how="stop")
    ended = unchanged(Job(faults=[fault], recovery=HANGS), tmp_path / "job", calm)
    assert ended.fired == [str(fault)]
    (told,) = ended.told("HANG_DETECTED")
    assert (told["rank"], told["how"]) == (1, "silent")
    assert "stop_oneself" in (Path(told["stacks"]) / "rank-0001.txt").read_text()
    assert [(line["rank"], line["cause"]) for line in ended.told("WORKER_LOST")] == [(1, "hang")]


def test_a_rank_that_dies_in_its_build_over_and_over_ends_the_run(tmp_path: Path) -> None:
    fault = Fault(where="build", iteration=0, rank=1, times=9)
    ended = run(Job(faults=[fault]), tmp_path / "job")
    assert isinstance(ended.error, RecoveryError)
    assert "another failure: rank 1" in str(ended.error)
    assert ended.fired == [str(fault)] * 4


def test_a_rank_that_stops_while_it_goes_back_is_named_and_replaced(survives: Any) -> None:
    fault = Fault(where="forward", iteration=19, rank=1)
    points = "rewind.received=stop@0!"
    job = Job(workers={"count": 2, "spares": 2}, faults=[fault], points=points, recovery=HANGS)
    ended = survives(job, fired=[str(fault), "rewind.received stop 0"], lost=[0, 1])
    (told,) = ended.told("HANG_DETECTED")
    assert (told["rank"], told["how"]) == (0, "silent")


def test_a_rank_that_stops_while_all_load_the_checkpoint_is_named_and_replaced(survives: Any) -> None:
    faults = [Fault(where="forward", iteration=19, rank=rank) for rank in (0, 1)]
    points = "load.read=stop@1!"
    job = Job(workers={"count": 2, "spares": 3}, faults=faults, points=points, recovery=HANGS, at_gate=SAVED)
    ended = survives(job, fired=[*sorted(map(str, faults)), "load.read stop 1"], lost=[0, 1, 1])
    (told,) = ended.told("HANG_DETECTED")
    assert (told["rank"], told["how"]) == (1, "silent")
