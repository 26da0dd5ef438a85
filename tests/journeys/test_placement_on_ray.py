"""Where workers live on a cluster of unlike nodes: pretended GPUs, custom resources, labels, all placements."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Orchestrator
from orchestrator.journal import read_journal
from orchestrator.placement import Cluster, Places
from orchestrator.spec import ClusterSpec, WorkersSpec
from tests.conftest import RayNodes
from tests.journeys import programs
from tests.waiting import wait_until
from workers import Events


@pytest.fixture(scope="module")
def nodes(ray_nodes: RayNodes) -> Iterator[dict[str, str]]:
    """Two nodes with pretended GPUs beside the head; their names by id."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        first = ray_nodes.add(4, num_gpus=2, labels={"accelerator": "H100"}, resources={"disk": 4})
        second = ray_nodes.add(4, num_gpus=2, labels={"accelerator": "A100"})
    named = {ray_nodes.head.node_id: "head", first.node_id: "H100", second.node_id: "A100"}
    cluster = Cluster(ClusterSpec(address=ray_nodes.address), WorkersSpec(count=1))
    cluster.start()
    import ray

    wait_until(lambda: sum(node["Alive"] for node in ray.nodes()) == 3, what="three nodes are there")
    yield named
    cluster.stop()


def laid_out(nodes: dict[str, str], **workers: Any) -> list[str]:
    """The nodes on which workers get places."""
    places, homes = Places(WorkersSpec(**workers), one_node=False), []
    try:
        places.lay_out(lambda worker, group, home: homes.append(nodes[home or ""]))
        wait_until(places.ready, what="all places are there")
    finally:
        places.stop()
    return homes


@pytest.mark.parametrize(
    ("placement", "count", "on_nodes"),
    [("PACK", 3, {1}), ("STRICT_PACK", 3, {1}), ("SPREAD", 3, {3}), ("STRICT_SPREAD", 3, {3}), ("SPREAD", 6, {3})],
)
def test_workers_are_laid_out_as_the_job_says(
    nodes: dict[str, str], placement: str, count: int, on_nodes: set[int]
) -> None:
    assert len(set(laid_out(nodes, count=count, placement=placement))) in on_nodes


def test_shares_of_gpus_and_custom_resources_are_found_where_they_are(nodes: dict[str, str]) -> None:
    shares = Counter(laid_out(nodes, count=8, cpus=0.5, gpus=0.5))
    assert shares == {"H100": 4, "A100": 4}
    assert set(laid_out(nodes, count=2, resources={"disk": 2.0})) == {"H100"}


@pytest.mark.parametrize(
    ("selector", "there"), [("H100", {"H100"}), ("!H100", {"A100", "head"}), ("in(A100,B200)", {"A100"})]
)
def test_workers_live_on_nodes_with_the_labels_that_they_want(
    nodes: dict[str, str], selector: str, there: set[str]
) -> None:
    assert set(laid_out(nodes, count=4, labels={"accelerator": selector}, placement="SPREAD")) <= there


def test_ranks_are_ordered_by_node_and_gpu_and_see_those_of_their_node(nodes: dict[str, str], tmp_path: Path) -> None:
    told: list[Any] = []
    orchestrator = Orchestrator(
        programs.linear,
        run="gpus",
        workers={"count": 4, "cpus": 0.5, "gpus": 1, "placement": "SPREAD"},
        config={"metrics": True},
        storage=tmp_path,
    )

    @orchestrator.on(Events.EPOCH_COMPLETED)
    def look(run: Orchestrator) -> None:
        told.extend(run.call(seen))

    orchestrator.run(max_epochs=1)
    ranks = [(local, tuple(own), visible) for local, own, visible, _ in told]
    assert ranks == [(0, ("0",), "0,1"), (1, ("1",), "0,1")] * 2
    assert len({node for *_, node in told[:2]}) == len({node for *_, node in told[2:]}) == 1
    built = [line for line in read_journal(tmp_path / "gpus/journal.jsonl") if line["event"] == "WORKER_BUILT"]
    assert [(line["device"], line["threads"]) for line in built] == [("cpu", 1)] * 4  # there is no real GPU


def seen(worker: Any) -> tuple[int, list[str], str, str]:
    """Of a rank: its number on its node, what was lent to it, what it sees, where it is."""
    import ray

    context = ray.get_runtime_context()
    own = [str(gpu) for gpu in context.get_accelerator_ids()["GPU"]]
    return worker.local_rank, own, os.environ["CUDA_VISIBLE_DEVICES"], context.get_node_id()
