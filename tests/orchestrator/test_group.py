"""Workers on one node of a real Ray: single ones are added and ended, stopped, watched, and heard through a break."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from orchestrator import group as module
from orchestrator.exchange import Lost
from tests.orchestrator.rank_group import Heard, group_of
from tests.waiting import wait_until
from workers.messages import Answer, Pulse
from workers.stacks import state_of


@pytest.fixture
def two(ray_cluster: str) -> Iterator[Heard]:
    """Two workers that are up."""
    with group_of(2, ray_cluster) as heard:
        yield heard


def reserved() -> float:
    """CPUs that are reserved by somebody."""
    import ray

    return ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0.0)


def test_a_lost_worker_is_replaced_and_its_place_given_back(two: Heard) -> None:
    two.signal(1)
    assert "worker process has died" in two.until(Lost, 1).cause
    two.group.kill(1)
    two.group.add(2)
    two.hello(2)
    two.build(2)
    two.call(2, 1, lambda worker: None)
    two.until(Answer, 2)
    assert two.group.size == 2
    wait_until(lambda: reserved() == 2, what="the place that is given back")


@pytest.mark.parametrize("number", [None, signal.SIGSTOP])
def test_a_worker_that_is_killed_is_gone_at_once_and_told_by_nothing(two: Heard, number: int | None) -> None:
    pid = two.places[1].pid
    if number is not None:
        two.signal(1, number)
        wait_until(lambda: state_of(pid) == "T", what="the stop")
    two.came.clear()
    two.group.kill(1)
    # Ray alone would let a stopped process live for 5 s.
    wait_until(lambda: state_of(pid) in {"", "Z"}, timeout=4, what="the end of the process", interval=0)
    two.until(Pulse, 0)
    two.until(Pulse, 0)
    assert two.of(1) == []
    wait_until(lambda: reserved() == 1, what="the place that is given back")


def test_an_added_worker_waits_for_its_place_and_can_be_given_up(ray_cluster: str) -> None:
    with group_of(2, ray_cluster, cpus=4) as heard:
        heard.group.add(2)
        wait_until(lambda: heard.group.shortage() == "0 CPU", what="a worker that waits")
        heard.group.kill(2)
        wait_until(lambda: heard.group.shortage() is None, what="nobody who waits")
        heard.group.add(3)
        heard.group.kill(0)
        heard.hello(3)
        assert heard.lost() == {}
        assert heard.of(2) == []


def stands_here(worker: Any) -> None:
    threading.Event().wait()


def holds_the_gil(worker: Any) -> None:
    ctypes.PyDLL(None).sleep(600)


def test_a_worker_that_never_began_to_live_is_started_again(ray_cluster: str) -> None:
    import ray

    with group_of(2, ray_cluster, cpus=4) as heard:
        heard.group.add(2)
        member = heard.group._members[2]
        first = wait_until(lambda: member.actor, what="its actor, which waits for a place")
        ray.kill(first)
        wait_until(lambda: member.actor is not first, what="another one")
        heard.group.kill(0)
        heard.hello(2)
        assert heard.lost() == {}


def test_a_worker_that_never_begins_to_live_is_lost_in_the_end(ray_cluster: str) -> None:
    import ray

    with group_of(2, ray_cluster, cpus=4) as heard:
        heard.group.add(2)
        member = heard.group._members[2]
        for _ in range(module.TRIES):
            actor = wait_until(lambda: member.actor, what="its actor")
            ray.kill(actor)
            wait_until(
                lambda old=actor: (heard.take(), member.actor is not old or heard.lost())[1], what="what follows"
            )
        assert "never ran" in heard.lost()[2]


def in_phase(came: Any, worker: int, phase: str) -> bool:
    return isinstance(came, Pulse) and came.worker == worker and came.phase == phase


def test_the_stacks_of_workers_name_where_they_stand(ray_cluster: str) -> None:
    with group_of(3, ray_cluster) as heard:
        for worker, function in enumerate((stands_here, holds_the_gil, stands_here)):
            heard.build(worker)
            heard.call(worker, 1, function)
        for worker in (0, 2):
            heard.until_true(lambda came, n=worker: in_phase(came, n, "calling stands_here"), f"{worker} stands")
        heard.signal(2, signal.SIGSTOP)
        wait_until(lambda: "holds_the_gil" in heard.group.stacks([1])[1], what="the hold")
        stacks = heard.group.stacks([0, 1, 2, 7])
        assert "stands_here" in stacks[0]
        assert "holds_the_gil" in stacks[1]
        assert "stands_here" in stacks[2]
        assert stacks[7] == "no stacks: it has not said where it is"


def test_a_worker_whose_driver_is_silent_ends_itself(ray_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEATS", 0.001)  # a beat in a thousand leases
    with group_of(1, ray_cluster, lease=2.0) as heard:
        pid = heard.places[0].pid
        heard.until(Lost, 0)
        assert state_of(pid) in {"", "Z"}


def test_beats_keep_an_idle_worker_alive_beyond_its_lease(ray_cluster: str) -> None:
    with group_of(1, ray_cluster, lease=2.0) as heard:
        began = psutil.Process(heard.places[0].pid).create_time()
        heard.until_true(lambda came: isinstance(came, Pulse) and came.idle > 5.0, "a pulse after two leases")
        assert psutil.Process(heard.places[0].pid).create_time() == began


def cut_connections_to(pid: int) -> int:
    """Shut down every connection of this process to a port on which that process listens; how many there were."""
    ports = {one.laddr.port for one in psutil.Process(pid).net_connections("tcp") if one.status == "LISTEN"}
    cut = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(fd))) as connection:
                if connection.family != socket.AF_UNIX and connection.getpeername()[1] in ports:
                    connection.shutdown(socket.SHUT_RDWR)
                    cut += 1
        except OSError:
            continue
    return cut


def test_a_connection_that_breaks_loses_and_doubles_nothing(two: Heard) -> None:
    line = two.group._streams._lines[0]
    two.build(0)
    numbers = iter(range(1, 10_000))
    asked = 0

    def ask(until: int) -> None:
        nonlocal asked
        while asked < until:
            asked = next(numbers)
            two.call(0, asked, lambda worker: None)

    ask(50)
    wait_until(lambda: two.take() is None and two.answers(0), what="answers", interval=0)
    assert cut_connections_to(two.places[0].pid) > 0
    ask(100)  # orders of the broken time, and their answers
    wait_until(lambda: [two.take()] and line.epoch == 1 and line.items > 0, what="the second stream", interval=0)
    ask(150)
    wait_until(lambda: [two.take()] and len(two.answers(0)) >= 150, what="all answers", interval=0)
    assert two.answers(0) == list(range(1, 151))
    assert two.lost() == {}
