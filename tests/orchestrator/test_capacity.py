"""What a cluster has room for, in words where it has not; and where a replacement may live."""

from __future__ import annotations

import os
from typing import Any

import pytest

from orchestrator.capacity import OVERSUBSCRIBE, check_capacity, local_cpus, nodes_for
from orchestrator.errors import CapacityError
from orchestrator.spec import WorkersSpec


@pytest.mark.parametrize(
    ("asked", "nodes", "mend"),
    [
        ({"gpus": 1}, [{"CPU": 8}], "ask for fewer gpus, or add nodes that have them"),
        ({"gpus": 1}, [{"CPU": 8, "GPU": 1}], "ask for fewer workers or gpus, or add nodes"),
        ({"resources": {"disk": 2}}, [{"CPU": 8}], "ask for less of 'disk', or add nodes that have it"),
        ({"cpus": 8}, [{"CPU": 8, "GPU": 8}], "ask for fewer workers or add nodes"),
        ({"cpus": 9, "gpus": 9}, [{"CPU": 8, "GPU": 8}], "ask for fewer cpus, or add nodes that have them"),
        ({"placement": "STRICT_SPREAD"}, [{"CPU": 8}], "ask for fewer workers or add nodes"),
    ],
)
def test_what_is_short_is_what_fewer_are_asked_of(asked: dict[str, Any], nodes: list[Any], mend: str) -> None:
    with pytest.raises(CapacityError) as caught:
        check_capacity(WorkersSpec(**{"count": 2, **asked}), nodes)
    assert str(caught.value).rpartition("; ")[2] == mend


def test_a_local_ray_is_given_a_cpu_for_every_rank_up_to_a_limit() -> None:
    cores = os.cpu_count() or 1
    assert local_cpus(WorkersSpec(count=1)) == cores
    assert local_cpus(WorkersSpec(count=cores, spares=1)) == cores + 1
    with pytest.raises(CapacityError, match=f"at most {OVERSUBSCRIBE} ranks share one"):
        local_cpus(WorkersSpec(count=cores * OVERSUBSCRIBE + 1))


@pytest.mark.parametrize("placement", ["PACK", "SPREAD"])
def test_a_replacement_lives_anywhere_but_on_avoided_nodes(placement: str) -> None:
    assert nodes_for(placement, avoid=[], homes=["a"]) is None
    assert nodes_for(placement, avoid=["b", "a"], homes=["a", "c"]) == "!in(a,b)"


def test_one_that_must_live_with_the_others_leaves_them_only_for_an_avoided_node() -> None:
    assert nodes_for("STRICT_PACK", avoid=["b"], homes=["a", "a"]) == "in(a)"
    assert nodes_for("STRICT_PACK", avoid=["a"], homes=["a"]) == "!in(a)"
    assert nodes_for("STRICT_PACK", avoid=[], homes=[]) is None


def test_one_that_must_live_alone_avoids_the_others_too() -> None:
    assert nodes_for("STRICT_SPREAD", avoid=["b"], homes=["a", "c"]) == "!in(a,b,c)"


def test_labels_that_no_node_has_are_refused_with_those_that_there_are() -> None:
    workers = WorkersSpec(count=1, labels={"accelerator": "B200"})
    with pytest.raises(CapacityError) as caught:
        check_capacity(workers, [{"CPU": 4}, {"CPU": 4}], [{"accelerator": "H100", "ray.io/node-id": "x"}, {}])
    assert str(caught.value) == (
        "cluster: expected room for workers on nodes with the labels accelerator: B200, received accelerator: H100; no "
        "labels; change workers.labels, or start nodes with `ray start --labels`"
    )


def test_only_nodes_with_the_labels_have_room() -> None:
    workers = WorkersSpec(count=2, cpus=3, labels={"zone": "!b"})
    check_capacity(workers, [{"CPU": 8}, {"CPU": 1}], [{"zone": "a"}, {"zone": "b"}])
    with pytest.raises(CapacityError):
        check_capacity(workers, [{"CPU": 8}, {"CPU": 1}], [{"zone": "b"}, {"zone": "a"}])
