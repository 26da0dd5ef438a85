"""Nodes of a real Ray die or stop in the middle of a run: it goes on elsewhere, and what comes out is the same."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import ClusterEvents, Orchestrator
from orchestrator.errors import CapacityError
from tests.conftest import RayNodes
from tests.journeys.ray_job import Job, assert_equal
from tests.waiting import wait_until
from workers import Events
from workers.stacks import state_of

ALL = os.environ.get("RANKFIRE_FAULTS") == "all"
SPREAD = {"cpus": 1, "placement": "SPREAD"}
ONE_A_NODE = {"cpus": 1, "placement": "STRICT_SPREAD"}


@pytest.fixture
def doomed(ray_nodes: RayNodes) -> Iterator[Any]:
    """One more node, with room for one rank."""
    node = ray_nodes.add(1)
    yield node
    with contextlib.suppress(Exception):  # a test has ended it
        ray_nodes.remove(node)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, ray_nodes: RayNodes) -> Job:
    """The run in which nothing happens."""
    return Job(tmp_path_factory.mktemp("calm"), ray_nodes.address, "calm").run()


def gone(pid: int) -> bool:
    return state_of(pid) in {"", "Z"}


@pytest.mark.timeout(300)
def test_a_rank_whose_node_dies_goes_on_on_another_one(
    tmp_path: Path, ray_nodes: RayNodes, calm: Job, doomed: Any
) -> None:
    job = Job(tmp_path, ray_nodes.address, "died", workers=SPREAD)
    before: dict[int, str] = {}

    def kill() -> None:
        before.update(job.nodes)
        ray_nodes.kill(doomed).wait()

    job.at(19, kill).hold(3, lambda: job.lost, "the loss").run()
    rank = next(rank for rank, home in before.items() if home == doomed.node_id)
    assert [(lost.rank, lost.node) for lost in job.lost] == [(rank, doomed.node_id)]
    assert [(one.ranks, one.source) for one in job.recovered] == [((rank,), "snapshot")]
    assert set(job.nodes.values()) == {ray_nodes.head.node_id}
    assert gone(job.lost[0].pid or 0)
    assert_equal(job, calm)


@pytest.mark.skipif(not ALL, reason="waits for 20 s; RANKFIRE_FAULTS=all has it run")
@pytest.mark.timeout(300)
def test_without_room_elsewhere_the_run_waits_until_its_deadline_and_goes_on_when_there_is_a_node(
    tmp_path: Path, ray_nodes: RayNodes, calm: Job, doomed: Any
) -> None:
    job = Job(tmp_path, ray_nodes.address, "waits", workers=ONE_A_NODE, cluster={"start_timeout": 20})
    job.at(19, lambda: ray_nodes.kill(doomed).wait()).hold(3, lambda: job.recovered, "its deadline")
    with pytest.raises(CapacityError, match=r"a new worker for rank .*none in time.*the same command goes on") as ended:
        job.run()
    assert ended.value.exit_code == 3
    assert [lost.node for lost in job.lost] == [doomed.node_id]
    assert job.recovered == []
    ray_nodes.remove(doomed)
    other = ray_nodes.add(1)
    again = Job(tmp_path, ray_nodes.address, "waits", workers=ONE_A_NODE).run()
    assert [line["checkpoint"] for line in again.lines("RESUMED")] == ["step-00000016"]
    assert set(again.nodes.values()) == {ray_nodes.head.node_id, other.node_id}
    ray_nodes.remove(other)
    assert again.digests == calm.digests
    assert again.metrics == calm.metrics[2:]


@pytest.mark.timeout(300)
def test_without_room_elsewhere_fewer_ranks_go_on_if_they_may(tmp_path: Path, ray_nodes: RayNodes, doomed: Any) -> None:
    job = Job(tmp_path, ray_nodes.address, "shrinks", workers={**ONE_A_NODE, "min": 1})
    worlds: list[tuple[int, int]] = []
    job.orchestrator.on(ClusterEvents.WORLD_RESIZED)(lambda run, world: worlds.append((world.before, world.after)))
    job.at(19, lambda: ray_nodes.kill(doomed).wait()).hold(3, lambda: worlds, "a smaller world").run()
    assert [lost.node for lost in job.lost] == [doomed.node_id]
    assert worlds == [(2, 1)]
    assert job.epochs == [1, 2, 3, 4, 5, 6]


@pytest.mark.timeout(300)
def test_a_rank_whose_node_stops_is_replaced_and_changes_nothing_when_it_wakes_up(
    tmp_path: Path, ray_nodes: RayNodes, calm: Job, doomed: Any
) -> None:
    job = Job(tmp_path, ray_nodes.address, "stopped", workers=SPREAD)
    raylet = doomed.all_processes["raylet"][0].process
    woken: list[int] = []
    job.at(19, lambda: os.kill(raylet.pid, signal.SIGSTOP)).hold(3, lambda: job.recovered, "another rank")

    @job.orchestrator.on(Events.EPOCH_COMPLETED(once=5))
    def wake(run: Orchestrator) -> None:  # its process knows nothing of all this
        assert [lost.node for lost in job.lost] == [doomed.node_id]
        stale = job.lost[0].pid or 0
        assert not gone(stale)
        assert state_of(raylet.pid) == "T"
        os.kill(raylet.pid, signal.SIGCONT)
        raylet.wait(30)
        wait_until(lambda: gone(stale), timeout=30, what="the end of the rank that woke up late")
        woken.append(stale)

    job.run()
    assert len(woken) == 1
    assert woken[0] not in job.pids.values()
    assert set(job.nodes.values()) == {ray_nodes.head.node_id}
    assert_equal(job, calm)
