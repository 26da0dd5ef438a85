"""Events of the cluster: their payloads, and those that whole runs in this process fire."""

import pickle
from pathlib import Path
from typing import Any, get_args

import pytest

from orchestrator import Checkpoint, ClusterEvents, Evaluate, HandlerError, Orchestrator, SpecError
from orchestrator.cluster_events import CheckpointCommitted, EvaluationCompleted, Payload, WorkerLost
from tests.orchestrator.linear import journal, make
from workers import Events


def test_every_event_has_one_payload() -> None:
    assert [kind.event for kind in get_args(Payload)] == list(ClusterEvents)


def test_payloads_and_events_can_be_pickled() -> None:
    lost = WorkerLost(rank=1, cause="oom", text="low on memory", pid=7, node="n", host="h")
    assert pickle.loads(pickle.dumps(lost)) == lost
    assert pickle.loads(pickle.dumps(ClusterEvents.WORKER_LOST)) is ClusterEvents.WORKER_LOST


def told(orchestrator: Orchestrator, event: ClusterEvents) -> list[Any]:
    got: list[Any] = []
    orchestrator.on(event)(lambda run, what: got.append(what))
    return got


def test_a_shared_evaluation_is_told_with_its_metrics(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    got = told(orchestrator, ClusterEvents.EVALUATION_COMPLETED)
    orchestrator.attach(Evaluate(every=2))
    orchestrator.run(max_epochs=4)
    assert [type(one) for one in got] == [EvaluationCompleted] * 2
    lines = [line for line in journal(tmp_path) if line["event"] == "EVALUATION_COMPLETED"]
    assert [(one.engine, one.metrics) for one in got] == [(line["engine"], line["metrics"]) for line in lines]
    assert all(one.seconds > 0 for one in got)


def test_each_checkpoint_is_told_when_it_is_committed(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    got = told(orchestrator, ClusterEvents.CHECKPOINT_COMMITTED)
    orchestrator.attach(Checkpoint(every=1))
    result = orchestrator.run(max_epochs=2)
    assert [type(one) for one in got] == [CheckpointCommitted] * 2
    assert [(one.epoch, one.iteration) for one in got] == [(1, 3), (2, 6)]
    assert (got[-1].url, got[-1].metrics["loss"]) == (result.checkpoint, result.metrics["loss"])
    assert [one.size for one in got] == [
        line["bytes"] for line in journal(tmp_path) if line["event"] == "CHECKPOINT_COMMITTED"
    ]


def test_a_handler_may_be_added_while_the_run_is_on(tmp_path: Path) -> None:
    orchestrator, got = make(tmp_path), []

    @orchestrator.on(Events.EPOCH_COMPLETED(once=2))
    def add(run: Orchestrator) -> None:
        got.append(told(run, ClusterEvents.EVALUATION_COMPLETED))

    orchestrator.on(Events.EPOCH_COMPLETED)(lambda run: run.evaluate())
    orchestrator.run(max_epochs=3)
    assert len(got[0]) == 2


def test_what_a_handler_of_the_cluster_raises_ends_the_run_although_the_handler_around_it_catches_everything(
    tmp_path: Path,
) -> None:
    orchestrator = make(tmp_path)

    @orchestrator.on(ClusterEvents.EVALUATION_COMPLETED)
    def broken() -> None:
        raise ValueError("no such curve")

    @orchestrator.on(Events.EPOCH_COMPLETED)
    def deaf(run: Orchestrator) -> None:
        try:
            run.evaluate()
        except Exception:
            run.state.metrics["swallowed"] = 1.0

    with pytest.raises(HandlerError, match=r"broken .* at cluster.EVALUATION_COMPLETED #1 raised ValueError"):
        orchestrator.run(max_epochs=3)
    assert orchestrator.state.metrics["swallowed"] == 1.0


def test_what_a_handler_of_a_commit_raises_ends_the_run_and_the_checkpoint_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    orchestrator = make(tmp_path)

    @orchestrator.on(ClusterEvents.CHECKPOINT_COMMITTED)
    def broken() -> None:
        raise ValueError("no such curve")

    orchestrator.attach(Checkpoint(every=1))
    with pytest.raises(HandlerError, match=r"at cluster.CHECKPOINT_COMMITTED #1 raised ValueError"):
        orchestrator.run(max_epochs=3)
    assert [line["event"] for line in journal(tmp_path)].count("CHECKPOINT_COMMITTED") == 1
    assert make(tmp_path).run(max_epochs=3).state.iteration == 9
    assert "goes on from checkpoint step-00000003" in capsys.readouterr().err


def test_ranks_and_other_engines_do_not_see_them(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    with pytest.raises(SpecError, match="leave rank out"):
        orchestrator.on(ClusterEvents.RECOVERED, rank=0)(print)
    with pytest.raises(SpecError, match="leave engine out"):
        orchestrator.on(ClusterEvents.RECOVERED, engine="evaluator")(print)
