"""The main job on real Ray: every kind of handler, one evaluation and one commit an epoch, exact metrics."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import Checkpoint, Evaluate, Orchestrator
from orchestrator.journal import read_journal
from tests.journeys import programs
from workers import Events

pytestmark = pytest.mark.usefixtures("ray_cluster")
EPOCHS = 3


def record_place(engine: Any, folder: str, name: str) -> None:
    """A handler for ranks: leave a file that tells where and when it ran."""
    worker, state = engine.worker, engine.state
    (Path(folder) / f"{name}-rank{worker.rank}-epoch{state.epoch}").write_text(str(os.getpid()))


@pytest.fixture(scope="module")
def main_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three ranks, a handler on each kind of place, an evaluator, checkpoints."""
    storage, places = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("places")
    seen: dict[str, Any] = {"driver": [], "observed": [], "evaluator": [], "places": places, "storage": storage}
    orchestrator = Orchestrator(
        programs.linear, run="three", workers={"count": 3, "cpus": 0.5}, config={"metrics": True}, storage=storage
    )
    orchestrator.attach(Evaluate("evaluator"))
    for where in (0, [0, 2], "all", "local_rank_0"):
        name = "rank" + str(where).replace(", ", "_")
        orchestrator.on(Events.EPOCH_COMPLETED, str(places), name, rank=where)(record_place)

    @orchestrator.on(Events.EPOCH_COMPLETED)
    def on_driver(run: Orchestrator) -> None:
        seen["driver"].append((os.getpid(), run.state.epoch, dict(run.metrics)))
        seen["on ranks"] = run.call(lambda worker: dict(worker.program.engines["trainer"].state.metrics))

    @orchestrator.on(Events.EPOCH_STARTED(once=3))
    def look_at_ranks(run: Orchestrator) -> None:
        seen["released"] = run.call(lambda worker: dict(worker.program.engines["trainer"].state.metrics))
        seen["before"] = dict(run.metrics)

    @orchestrator.on(Events.ITERATION_COMPLETED(every=2))
    def observe(run: Orchestrator) -> None:
        seen["observed"].append(run.state.iteration)

    @orchestrator.on(Events.COMPLETED, engine="evaluator")
    def after_evaluation(run: Orchestrator) -> None:
        seen["evaluator"].append(dict(run.state_of("evaluator").metrics))

    @orchestrator.on(Events.COMPLETED)
    def at_the_end(run: Orchestrator) -> None:
        seen["parameters"] = run.call(
            lambda worker: [p.detach().clone() for p in worker.program.state["model"].parameters()]
        )

    orchestrator.attach(Checkpoint(every=1, keep=2))
    seen["result"] = orchestrator.run(max_epochs=EPOCHS)
    seen["journal"] = list(read_journal(storage / "three" / "journal.jsonl"))
    return seen


@pytest.fixture(scope="module")
def single_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same job on one rank."""
    seen: dict[str, Any] = {"driver": []}
    orchestrator = Orchestrator(
        programs.linear, run="one", workers=1, config={"metrics": True}, storage=tmp_path_factory.mktemp("one")
    )
    orchestrator.attach(Evaluate("evaluator"))

    @orchestrator.on(Events.EPOCH_COMPLETED)
    def on_driver(run: Orchestrator) -> None:
        seen["driver"].append(dict(run.metrics))

    @orchestrator.on(Events.COMPLETED)
    def at_the_end(run: Orchestrator) -> None:
        seen["parameters"] = run.call(
            lambda worker: [p.detach().clone() for p in worker.program.state["model"].parameters()]
        )

    orchestrator.run(max_epochs=EPOCHS)
    return seen


def test_the_journal_tells_one_epoch_one_evaluation_one_commit_per_epoch(main_run: dict[str, Any]) -> None:
    counts = Counter(line["event"] for line in main_run["journal"])
    assert counts["EPOCH_COMPLETED"] == counts["EVALUATION_COMPLETED"] == counts["CHECKPOINT_COMMITTED"] == EPOCHS
    assert counts["WORKER_JOINED"] == 3


def test_every_journal_line_has_its_five_fields(main_run: dict[str, Any]) -> None:
    for line in main_run["journal"]:
        assert {"event", "time", "generation", "epoch", "iteration"} <= line.keys()
    joined = [line for line in main_run["journal"] if line["event"] == "WORKER_JOINED"]
    assert [line["rank"] for line in joined] == [0, 1, 2]
    assert all(line["pid"] != os.getpid() and line["node"] for line in joined)


def test_driver_handlers_run_once_an_epoch_in_the_drivers_process(main_run: dict[str, Any]) -> None:
    assert [(pid, epoch) for pid, epoch, _ in main_run["driver"]] == [(os.getpid(), n + 1) for n in range(EPOCHS)]


@pytest.mark.parametrize(
    ("name", "ranks"), [("rank0", [0]), ("rank[0_2]", [0, 2]), ("rankall", [0, 1, 2]), ("ranklocal_rank_0", [0])]
)
def test_rank_handlers_run_on_their_ranks_only(main_run: dict[str, Any], name: str, ranks: list[int]) -> None:
    files = {path.name for path in main_run["places"].iterdir() if path.name.startswith(f"{name}-")}
    assert files == {f"{name}-rank{rank}-epoch{epoch + 1}" for rank in ranks for epoch in range(EPOCHS)}


def test_observers_hear_of_every_matching_iteration_once(main_run: dict[str, Any]) -> None:
    steps = main_run["result"].state.iteration
    assert main_run["observed"] == list(range(2, steps + 1, 2))


def test_after_a_gate_every_rank_holds_the_reduced_metrics(main_run: dict[str, Any]) -> None:
    assert set(main_run["before"]) == {"loss", "validation/mse"}
    assert main_run["released"] == [main_run["before"]] * 3


def test_the_evaluators_own_events_have_reduced_metrics(main_run: dict[str, Any]) -> None:
    validation = [metrics["validation/mse"] for _, _, metrics in main_run["driver"]]
    assert [metrics["mse"] for metrics in main_run["evaluator"]] == validation


def test_metrics_and_parameters_equal_those_of_one_rank(main_run: dict[str, Any], single_run: dict[str, Any]) -> None:
    for (_, _, many), one in zip(main_run["driver"], single_run["driver"], strict=True):
        assert many == pytest.approx(one, rel=1e-6)
    for parameters in main_run["parameters"]:
        for mine, theirs in zip(parameters, single_run["parameters"][0], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_the_result_names_the_newest_of_the_kept_checkpoints(main_run: dict[str, Any]) -> None:
    kept = sorted(path.name for path in (main_run["storage"] / "three" / "checkpoints").iterdir())
    assert kept == ["step-00000014", "step-00000021"]
    assert main_run["result"].status == "completed"
    assert Path(main_run["result"].checkpoint).name == kept[-1]


def test_a_second_run_of_the_same_id_goes_on_with_another_number_of_ranks(main_run: dict[str, Any]) -> None:
    epochs: list[int] = []
    orchestrator = Orchestrator(
        programs.linear, run="three", workers=2, config={"metrics": True}, storage=main_run["storage"]
    )

    @orchestrator.on(Events.EPOCH_COMPLETED)
    def remember(run: Orchestrator) -> None:
        epochs.append(run.state.epoch)

    assert orchestrator.run(max_epochs=EPOCHS + 1).status == "completed"
    assert epochs == [EPOCHS + 1]


def test_plain_numbers_are_reduced_by_their_own_rule(tmp_path: Path) -> None:
    orchestrator = Orchestrator(programs.counts_tokens, workers=2, storage=tmp_path)
    result = orchestrator.run(max_epochs=1)
    assert result.metrics == {"mean": 1.5, "weighted": 5 / 3, "sum": 3.0, "min": 1.0, "max": 2.0}
