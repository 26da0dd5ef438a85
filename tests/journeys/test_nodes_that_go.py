"""A node is about to be taken away: what is there is saved, and its ranks move in time, or the run ends well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator import Checkpoint, ClusterEvents, Orchestrator, RunInterrupted
from orchestrator.cluster_events import PreemptionNotice, WorkerLost
from orchestrator.journal import read_journal
from tests.journeys import stochastic
from tests.process_ranks import ProcessGroup
from tests.waiting import wait_until
from workers import Events, Worker


@pytest.fixture(autouse=True)
def nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every worker lives on a node of its own."""
    monkeypatch.setattr("orchestrator.training.RayGroup", ProcessGroup)
    monkeypatch.setattr(ProcessGroup, "made", [])
    monkeypatch.setattr(ProcessGroup, "nodes", ("node-a", "node-b", "node-c"))
    monkeypatch.setattr(ProcessGroup, "drains", {})


def job(folder: Path, run: str, **workers: Any) -> tuple[Orchestrator, list[str]]:
    """A job of two ranks, and the digests of all its ranks at its end."""
    orchestrator = Orchestrator(stochastic.build, run=run, workers={"count": 2, **workers}, storage=folder)
    orchestrator.attach(Checkpoint(every=100))
    digests: list[str] = []
    orchestrator.on(Events.COMPLETED)(lambda run: digests.extend(run.call(stochastic.digest)))
    return orchestrator, digests


def drain(orchestrator: Orchestrator, epoch: int, nodes: dict[str, float]) -> None:
    """Have nodes announced in an epoch, and wait there until the driver has seen it."""
    seen: list[PreemptionNotice] = []
    orchestrator.on(ClusterEvents.PREEMPTION_NOTICE)(lambda run, notice: seen.append(notice))

    @orchestrator.on(Events.EPOCH_COMPLETED(once=epoch))
    def announce(run: Orchestrator) -> None:
        ProcessGroup.drains = nodes

        def noticed() -> bool:
            run.call(node_of)  # the loop turns while it is asked
            return len(seen) == len(nodes)

        wait_until(noticed, what="the notice", timeout=30, interval=0)


def node_of(worker: Worker) -> int:
    return worker.rank


def journal(folder: Path, run: str, event: str) -> list[dict[str, Any]]:
    return [line for line in read_journal(folder / run / "journal.jsonl") if line["event"] == event]


def test_ranks_leave_a_node_that_goes_and_nothing_is_lost(tmp_path: Path) -> None:
    calm, expected = job(tmp_path, "calm")
    calm.run(max_epochs=6)
    orchestrator, digests = job(tmp_path, "moved", spares=1)
    lost: list[WorkerLost] = []
    orchestrator.on(ClusterEvents.WORKER_LOST)(lambda run, one: lost.append(one))
    drain(orchestrator, 2, {"node-b": 60.0})
    assert orchestrator.run(max_epochs=6).status == "completed"
    assert digests == expected
    assert [(one.rank, one.cause, one.node) for one in lost] == [(1, "preemption", "node-b")]
    notice = journal(tmp_path, "moved", "PREEMPTION_NOTICE")[0]
    assert (notice["node"], notice["ranks"]) == ("node-b", [1])
    saved = [line["iteration"] for line in journal(tmp_path, "moved", "CHECKPOINT_COMMITTED")]
    assert saved[0] < 6 * 8, "it is saved when the notice comes, not only at the end"
    assert journal(tmp_path, "moved", "WORKER_JOINED")[-1]["node"] == "node-c"


def test_when_all_nodes_go_the_run_ends_saved_and_goes_on_elsewhere(tmp_path: Path) -> None:
    calm, expected = job(tmp_path, "calm")
    calm.run(max_epochs=40)
    orchestrator, _ = job(tmp_path, "ended")
    drain(orchestrator, 2, {"node-a": 0.2, "node-b": 0.2})
    with pytest.raises(RunInterrupted, match="the same command goes on") as ended:
        orchestrator.run(max_epochs=40)
    assert ended.value.exit_code == 130
    ProcessGroup.drains = {}
    again, digests = job(tmp_path, "ended")
    again.run(max_epochs=40)
    assert digests == expected
