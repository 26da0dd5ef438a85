"""Ranks on Ray are killed and replaced inside the run; what comes out is what would have come out."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from orchestrator import ClusterEvents, Orchestrator
from tests.journeys.ray_job import EPOCHS, Job, assert_equal
from workers import Events, Worker


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, ray_cluster: str) -> Job:
    """The run in which nothing happens."""
    return Job(tmp_path_factory.mktemp("calm"), ray_cluster, "calm").run()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_replaced_by_a_spare(tmp_path: Path, ray_cluster: str, calm: Job, rank: int) -> None:
    job = Job(tmp_path, ray_cluster, "spare", workers={"spares": 1}).kill_at(19, rank).run()
    assert [(lost.rank, lost.cause) for lost in job.lost] == [(rank, "crash")]
    assert [(one.ranks, one.source) for one in job.recovered] == [((rank,), "snapshot")]
    assert not psutil.pid_exists(job.lost[0].pid or 0)
    assert_equal(job, calm)


@pytest.mark.timeout(300)
def test_without_a_spare_a_new_worker_is_started(tmp_path: Path, ray_cluster: str, calm: Job) -> None:
    job = Job(tmp_path, ray_cluster, "new").kill_at(19, 1).run()
    assert [one.ranks for one in job.recovered] == [(1,)]
    assert_equal(job, calm)


@pytest.mark.timeout(300)
def test_all_ranks_at_once_go_back_to_the_newest_checkpoint(tmp_path: Path, ray_cluster: str, calm: Job) -> None:
    job = Job(tmp_path, ray_cluster, "all")
    job.kill_at(20, 0).kill_at(20, 1).run()
    assert job.recovered[-1].source == "checkpoint"
    assert_equal(job, calm)


@pytest.mark.timeout(300)
def test_a_rank_that_dies_while_a_handler_waits_for_it_does_not_disturb_the_handler(
    tmp_path: Path, ray_cluster: str, calm: Job
) -> None:
    job = Job(tmp_path, ray_cluster, "gate", workers={"spares": 1})

    @job.orchestrator.on(Events.EPOCH_COMPLETED(once=3))
    def call(run: Orchestrator) -> None:
        os.kill(job.pids[1], signal.SIGKILL)
        assert run.call(rank_of) == [0, 1]

    job.run()
    assert [lost.rank for lost in job.lost] == [1]
    assert_equal(job, calm)


def rank_of(worker: Worker) -> int:
    return worker.rank


@pytest.mark.timeout(300)
def test_a_smaller_world_goes_on_and_grows_again(tmp_path: Path, ray_cluster: str) -> None:
    job = Job(
        tmp_path,
        ray_cluster,
        "elastic",
        workers={"count": 3, "min": 2},
        config={"log": str(tmp_path)},
    )
    worlds: list[tuple[int, int]] = []
    job.orchestrator.on(ClusterEvents.WORLD_RESIZED)(lambda run, world: worlds.append((world.before, world.after)))

    @job.orchestrator.on(Events.EPOCH_COMPLETED)
    def wait_for_the_third(run: Orchestrator) -> None:  # so that there is something left to train when it comes
        if run.state.epoch == 4 and (3, 2) in worlds and (2, 3) not in worlds:
            wait_until_ready(run)

    job.kill_at(10, 1).run()
    assert worlds == [(3, 2), (2, 3)]
    assert job.epochs == list(range(1, EPOCHS + 1))
    last: dict[tuple[int, int], dict[int, list[int]]] = {}
    for file in tmp_path.glob("*.jsonl"):
        for text in file.read_text().splitlines():
            line = json.loads(text)
            last.setdefault((line["iteration"], line["world"]), {})[line["rank"]] = line["indices"]
    for iteration in range(1, EPOCHS * 8 + 1):
        complete = [
            sorted(index for indices in ranks.values() for index in indices)
            for (number, world), ranks in last.items()
            if number == iteration and len(ranks) == world
        ]
        assert complete, f"iteration {iteration} was never done by all ranks"
        assert all(one == complete[0] for one in complete), "another world gave it other samples"


def wait_until_ready(run: Orchestrator) -> None:
    from tests.waiting import wait_until

    def ready() -> bool:
        run.call(rank_of)  # the loop turns while it is asked
        assert run._run is not None
        return bool(run._run.ranks.spares)

    wait_until(ready, what="a third worker that is ready", timeout=60, interval=0)
