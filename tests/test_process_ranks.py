"""Plain processes in the place of Ray: they train as ranks on Ray do, die as they do, and leave nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator import Checkpoint, Evaluate, Orchestrator, WorkerLostError
from orchestrator.exchange import Lost
from orchestrator.spec import ClusterSpec, WorkersSpec
from tests.journeys import programs
from tests.process_ranks import ProcessGroup
from tests.waiting import wait_until
from workers import Events
from workers.messages import Hello
from workers.stacks import state_of
from workers.watchdog import EXIT_CODE, now


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessGroup]:
    """Two workers that said hello."""
    monkeypatch.setattr(ProcessGroup, "made", [])
    group = ProcessGroup(WorkersSpec(count=2), ClusterSpec())
    group.start()
    try:
        assert {hello(group).worker, hello(group).worker} == {0, 1}
        yield group
    finally:
        group.stop(grace=0)


def next_of(group: ProcessGroup, kind: type) -> Any:
    """The next thing of one kind."""
    came: list[Any] = []

    def look() -> bool:
        came.append(group.take(0.05))
        return isinstance(came[-1], kind)

    wait_until(look, what=f"{kind.__name__}; came {came}", interval=0)
    return came[-1]


def hello(group: ProcessGroup) -> Hello:
    found = next_of(group, Hello)
    assert isinstance(found, Hello)
    return found


def test_a_whole_run_trains_evaluates_and_saves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("orchestrator.training.RayGroup", ProcessGroup)
    monkeypatch.setattr(ProcessGroup, "made", [])
    pids: list[int] = []
    orchestrator = Orchestrator(
        programs.linear, run="two", workers={"count": 2, "spares": 1}, config={"metrics": True}, storage=tmp_path
    )
    orchestrator.attach(Evaluate("evaluator"))
    orchestrator.attach(Checkpoint(every=1))

    @orchestrator.on(Events.EPOCH_COMPLETED)
    def look(run: Orchestrator) -> None:
        pids.extend(run.call(lambda worker: os.getpid()))

    result = orchestrator.run(max_epochs=2)
    assert result.status == "completed"
    assert {"loss", "validation/mse"} <= set(result.metrics)
    assert result.checkpoint is not None
    assert pids[:2] == pids[2:]
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert ProcessGroup.made[0].pids == {}


def test_a_rank_that_is_killed_in_a_run_is_a_lost_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("orchestrator.training.RayGroup", ProcessGroup)
    monkeypatch.setattr(ProcessGroup, "made", [])
    recovery = {"on_loss": "stop"}
    orchestrator = Orchestrator(programs.linear, run="killed", workers=2, storage=tmp_path, recovery=recovery)

    @orchestrator.on(Events.EPOCH_COMPLETED)
    def kill(run: Orchestrator) -> None:
        ProcessGroup.made[0].signal(1)

    with pytest.raises(WorkerLostError, match=r"exit code -9"):
        orchestrator.run(max_epochs=2)


def test_a_killed_process_is_lost_with_its_exit_code(group: ProcessGroup) -> None:
    group.signal(1)
    assert next_of(group, Lost) == Lost(worker=1, cause="its process is gone (exit code -9)")


def test_a_stopped_process_that_is_killed_is_told_by_nothing(group: ProcessGroup) -> None:
    pid = group.pids[1]
    group.signal(1, signal.SIGSTOP)
    group.kill(1)
    assert not psutil.pid_exists(pid)
    assert group.size == 1
    group.signal(0)
    assert next_of(group, Lost).worker == 0  # and before it nothing of worker 1


def test_an_added_worker_lives_on_a_node_that_is_not_avoided(
    group: ProcessGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProcessGroup, "nodes", ("node-a", "node-b"))
    group.add(2, avoid=["node-a"])
    assert hello(group).place.node == "node-b"
    assert group.size == 3


def test_an_added_worker_waits_for_a_place(group: ProcessGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProcessGroup, "places", 2)
    group.add(7)
    assert group.shortage() is not None
    group.kill(0)
    assert hello(group).worker == 7
    assert group.shortage() is None


def test_the_stacks_of_a_stopped_process_are_seen(group: ProcessGroup) -> None:
    group.signal(0, signal.SIGSTOP)
    wait_until(lambda: state_of(group.pids[0]) == "T", what="the stop")
    stacks = group.stacks([0, 1])
    assert "mailbox.py" in stacks[1]
    assert "mailbox.py" in stacks[0]


def test_a_process_that_was_stopped_beyond_its_lease_ends_when_it_wakes() -> None:
    group = ProcessGroup(WorkersSpec(count=1), ClusterSpec(), lease=1.0)
    group.start()
    try:
        hello(group)
        group.signal(0, signal.SIGSTOP)
        stopped = now()
        wait_until(lambda: now() - stopped > 1.5, what="the end of the lease")
        group.signal(0, signal.SIGCONT)
        assert next_of(group, Lost).cause == f"its process is gone (exit code {EXIT_CODE})"
    finally:
        group.stop(grace=0)
