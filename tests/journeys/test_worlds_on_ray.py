"""Ranks on Ray become fewer and more within one epoch of one run; every sample of it is trained on exactly once.

Eight workers are started in it: it runs with `RANKFIRE_FAULTS=all`, as in `make chaos`.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import ray

from orchestrator import ClusterEvents, Orchestrator
from orchestrator.journal import read_journal
from tests.journeys import stochastic
from tests.recovery.jobs import PER_EPOCH, Ended
from tests.recovery.test_worlds import counts_once, wait_for_reserves, worlds
from workers import Events

CPUS = 8  # of the cluster


def kill(run: Orchestrator, *ranks: int) -> None:
    """End the processes of these ranks, all at once."""
    assert run._run is not None
    places, members = run._run.loop.facts.places, run._run.ranks.members
    for pid in [places[members[rank]].pid for rank in ranks]:
        os.kill(pid, signal.SIGKILL)


def lose(run: Orchestrator, world: int, *ranks: int) -> None:
    """Kill, and go on only when so many are left."""
    kill(run, *ranks)
    assert run._run is not None
    while run._run.ranks.world_size != world:
        run._run.loop.pump(timeout=0.05)


@pytest.mark.skipif(os.environ.get("RANKFIRE_FAULTS") != "all", reason="RANKFIRE_FAULTS is not all: it takes a while")
@pytest.mark.timeout(400)
def test_four_three_five_and_two_ranks_on_ray_share_one_epoch(tmp_path: Path, ray_cluster: str) -> None:
    occupied = ray.util.placement_group([{"CPU": CPUS - 4}])
    ray.get(occupied.ready())
    resized: list[tuple[int, int]] = []
    orchestrator = Orchestrator(
        stochastic.build,
        run="worlds",
        workers={"count": 4, "min": 2, "max": 5},
        cluster={"address": ray_cluster},
        config={"log": str(tmp_path), "metrics": False},
        storage=tmp_path / "runs",
    )
    ended = Ended(folder=tmp_path)
    orchestrator.on(ClusterEvents.WORLD_RESIZED)(lambda run, world: resized.append((world.before, world.after)))

    @orchestrator.on(Events.ITERATION_COMPLETED, blocking=True)
    def act(run: Orchestrator) -> None:
        if run.state.iteration == 2:
            lose(run, 3, 1)
        elif run.state.iteration == 4:  # a place is free since, and now there is room for one more
            ray.util.remove_placement_group(occupied)
            wait_for_reserves(run, 2)
        elif run.state.iteration == 6:
            lose(run, 2, 0, 2, 4)

    @orchestrator.on(Events.COMPLETED)
    def end(run: Orchestrator) -> None:
        assert run._run is not None
        ended.samples = run._run.gates.samples

    try:
        assert orchestrator.run(max_epochs=1).status == "completed"
    finally:
        ray.util.remove_placement_group(occupied)
    assert (resized[0], resized[1], resized[-1][1]) == ((4, 3), (3, 5), 2)
    assert worlds(ended) == [4, 3, 5, 2]
    assert sorted(ended.consumed) == list(range(1, PER_EPOCH + 1))
    counts_once(ended, 1)
    ended.journal = list(read_journal(str(tmp_path / "runs/worlds/journal.jsonl")))
    assert sorted(line["rank"] for line in ended.told("WORKER_LOST")) == [0, 1, 2, 4]
