"""Nodes of a real Ray that go away, or are about to: who was there is lost at once and replaced elsewhere."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.exchange import Lost
from orchestrator.placement import Places
from tests.conftest import RayNodes
from tests.orchestrator.rank_group import Heard, group_of
from tests.waiting import wait_until
from workers.messages import Answer, Pulse
from workers.stacks import state_of


@pytest.fixture
def doomed(ray_nodes: RayNodes) -> Iterator[Any]:
    """One more node, with room for one worker."""
    node = ray_nodes.add(1)
    yield node
    with contextlib.suppress(Exception):  # a test has ended it
        ray_nodes.remove(node)


@pytest.fixture
def spread(ray_nodes: RayNodes, doomed: Any) -> Iterator[tuple[Heard, int, int]]:
    """Two workers, one on the head and one on the other node: the group and both ids."""
    with group_of(2, ray_nodes.address, placement="STRICT_SPREAD") as heard:
        there = next(worker for worker, place in heard.places.items() if place.node == doomed.node_id)
        yield heard, 1 - there, there


def stands_here(worker: Any) -> None:
    threading.Event().wait()


def test_a_node_that_dies_loses_its_worker_which_is_replaced_elsewhere(
    spread: tuple[Heard, int, int], ray_nodes: RayNodes, doomed: Any
) -> None:
    heard, here, there = spread
    raylet = ray_nodes.kill(doomed)
    heard.until(Lost, there, timeout=3)
    # Ray leaves a worker alive as long as its raylet is not reaped; a rank sees for itself that it is an orphan.
    wait_until(lambda: state_of(heard.places[there].pid) in {"", "Z"}, what="the end of the orphan")
    raylet.wait()
    heard.group.kill(there)
    heard.group.add(2, avoid=[doomed.node_id])
    # STRICT_SPREAD leaves no other node than the head, where a worker is already: it waits for a new one.
    wait_until(lambda: heard.group.shortage() is not None, what="a worker that waits")
    new = ray_nodes.add(1)
    heard.hello(2)
    assert heard.places[2].node == new.node_id
    heard.build(here)
    heard.call(here, 1, lambda worker: None)
    heard.until(Answer, here)  # the survivor is well
    assert heard.lost().keys() == {there}
    ray_nodes.remove(new)


def test_a_replacement_avoids_a_node_that_is_alive_but_suspected(ray_nodes: RayNodes, doomed: Any) -> None:
    with group_of(1, ray_nodes.address, placement="PACK") as heard:
        for worker, avoid, home in ((1, ray_nodes.head, doomed), (2, doomed, ray_nodes.head)):
            heard.group.add(worker, avoid=[avoid.node_id])
            heard.hello(worker)
            assert heard.places[worker].node == home.node_id


def test_stacks_on_another_node_are_told_by_a_neighbour_or_by_who_is_sent_there(spread: tuple[Heard, int, int]) -> None:
    heard, _, there = spread
    heard.build(there)
    heard.call(there, 1, stands_here)
    heard.until_true(lambda came: isinstance(came, Pulse) and came.phase == "calling stands_here", "it stands")
    assert "stands_here" in heard.group.stacks([there])[there]
    heard.signal(there, signal.SIGSTOP)  # now it can't tell itself
    wait_until(lambda: "stands_here" in heard.group.stacks([there])[there], timeout=30, what="its stacks")


def test_a_node_that_is_about_to_be_taken_away_is_told_with_the_time_that_is_left(
    spread: tuple[Heard, int, int], ray_nodes: RayNodes, doomed: Any
) -> None:
    heard, _, there = spread
    assert heard.group.draining() == {}
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", ray_nodes.address]
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    subprocess.run(
        [*command, "--node-id", doomed.node_id, *reason, "--deadline-remaining-seconds", "600"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    left = wait_until(lambda: heard.group.draining(), timeout=5, what="the notice")
    assert left.keys() == {doomed.node_id}
    assert 500 < left[doomed.node_id] <= 600
    heard.group.kill(there)
    wait_until(
        lambda: doomed.all_processes["raylet"][0].process.poll() is not None,
        what="the end of the drained node, whose last place was given back", timeout=30,
    )  # fmt: skip
    assert heard.group.draining().keys() == {doomed.node_id}  # it is remembered
    assert heard.lost() == {}


def test_who_was_to_live_on_a_node_that_dies_just_then_lives_elsewhere(
    ray_nodes: RayNodes, doomed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place is there, and the node dies before the actor is: Ray would let it wait for a place there for ever."""
    lay_out, deaths = Places.lay_out, []

    def lay_out_and_kill(places: Places, placed: Any) -> None:
        laid_out: list[Any] = []
        lay_out(places, lambda *place: laid_out.append(place))
        for worker, group, home in laid_out:
            if home == doomed.node_id:
                assert group.wait(30)
                ray_nodes.kill(doomed).wait()
                deaths.append(worker)
            placed(worker, group, home)

    monkeypatch.setattr(Places, "lay_out", lay_out_and_kill)
    with group_of(2, ray_nodes.address, placement="SPREAD") as heard:
        pass
    assert len(deaths) == 1
    assert heard.lost() == {}
