"""A number that is not finite, and a model that differs on one rank: all ranks learn of it at one iteration, it is told
with ranks, and no checkpoint holds any of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Checkpoint, DivergenceError, NotFiniteError, Orchestrator, TerminateOnNan
from orchestrator.checkpoints.registry import Committed, Registry
from orchestrator.checkpoints.verify import problems
from orchestrator.cli.main import main
from orchestrator.journal import read_journal
from tests.journeys import programs
from tests.process_ranks import ProcessGroup
from workers import Events, Worker
from workers.locations import storage_at

JOB = """\
run: guarded
program: tests.journeys.programs:spoilt
config: {{spoil: {spoil}, rank: 1, at: 5}}
train: {{max_epochs: 2}}
workers: 2
checkpoint: {{every: {{iterations: 2}}}}
guard: {{nan: 1, divergence: 3}}
storage: {storage}
"""


@pytest.fixture(autouse=True)
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.training.RayGroup", ProcessGroup)
    monkeypatch.setattr(ProcessGroup, "made", [])


def guarded(storage: Path, spoil: str = "", *, at: int = 5, workers: int = 2, **config: Any) -> Orchestrator:
    """An orchestrator whose rank 1 is spoilt in its epochs of 7 iterations."""
    config = {"spoil": spoil, "rank": 1, "at": at} | config
    return Orchestrator(programs.spoilt, run="guarded", workers=workers, config=config, storage=storage)


def lines(storage: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in read_journal(storage / "guarded" / "journal.jsonl") if line["event"] == event]


def saved(storage: Path) -> Sequence[int]:
    """Iterations of the checkpoints, every byte of which was verified."""
    found: list[Committed] = Registry(storage_at(storage / "guarded" / "checkpoints")).committed()
    assert [problem for one in found for problem in problems(one.storage, one.manifest)] == []
    return [one.manifest.iteration for one in found]


def iteration_of(worker: Worker) -> int:
    assert worker.program is not None
    return worker.program.engines["trainer"].state.iteration


def weights(worker: Worker) -> list[float]:
    assert worker.program is not None
    return [number for p in worker.program.state["model"].parameters() for number in p.flatten().tolist()]  # type: ignore[attr-defined]


# ---------------------------------------------------------------- NaN
def test_a_nan_on_one_rank_ends_all_after_that_iteration_and_nothing_of_it_is_saved(tmp_path: Path) -> None:
    orchestrator, seen = guarded(tmp_path, "batch"), []
    orchestrator.attach(TerminateOnNan())
    orchestrator.attach(Checkpoint(every={"iterations": 1}))
    orchestrator.on(Events.TERMINATE)(lambda run: seen.append("TERMINATE"))
    orchestrator.on(Events.COMPLETED)(lambda run: seen.append(run.call(iteration_of)))
    result = orchestrator.run(max_epochs=2)
    assert seen == ["TERMINATE", [5, 5]]
    assert (result.status, result.state.iteration) == ("terminated", 5)
    assert result.reason == (
        "iteration 5: expected finite numbers, received on rank 1: loss is nan; look at the data of that iteration, "
        "lower the learning rate, or clip gradients"
    )
    assert isinstance(result.failure, NotFiniteError)
    assert result.failure.ranks == (1,)
    assert [(line["iteration"], line["ranks"]) for line in lines(tmp_path, "NOT_FINITE")] == [(5, [1])]
    assert saved(tmp_path)[-1] == 4
    assert result.checkpoint is not None
    assert result.checkpoint.endswith("step-00000004")


def test_the_same_where_each_rank_attached_the_handler_itself(tmp_path: Path) -> None:
    orchestrator = guarded(tmp_path, "batch", guard="TerminateOnNan")
    orchestrator.attach(Checkpoint(every={"iterations": 2}))
    result = orchestrator.run(max_epochs=2)
    assert (result.status, result.state.iteration) == ("terminated", 5)
    assert isinstance(result.failure, NotFiniteError)
    assert saved(tmp_path) == [2, 4]


def test_a_gradient_that_overflows_is_found_in_the_parameters_before_they_are_saved(tmp_path: Path) -> None:
    orchestrator = guarded(tmp_path, "gradient", at=4)  # the loss of iteration 4 is finite, that of 5 would not be
    orchestrator.attach(TerminateOnNan())
    orchestrator.attach(Checkpoint(every={"iterations": 2}))
    result = orchestrator.run(max_epochs=2)
    assert result.state.iteration == 4
    assert "received on ranks 0-1: parameter model.weight has 4 of 4 values" in str(result.reason)
    assert [line["iteration"] for line in lines(tmp_path, "CHECKPOINT_LEFT_OUT")] == [4, 4]  # when due, and at the end
    assert saved(tmp_path) == [2]


def test_parameters_and_gradients_are_looked_at_on_demand(tmp_path: Path) -> None:
    orchestrator = guarded(tmp_path, "gradient", at=4)
    orchestrator.attach(TerminateOnNan(every=2, parameters=True))
    result = orchestrator.run(max_epochs=2)
    assert result.state.iteration == 4
    assert "received on ranks 0-1: parameter model.weight has 4 of 4 values" in str(result.reason)


def test_a_look_at_every_third_iteration_ends_at_the_third(tmp_path: Path) -> None:
    orchestrator = guarded(tmp_path, "batch", at=4)
    orchestrator.attach(TerminateOnNan(lambda output: output["loss"], every=3))
    result = orchestrator.run(max_epochs=2)
    assert result.state.iteration == 6
    assert "received on ranks 0-1: output is nan" in str(result.reason)  # by then it has come to all


# ---------------------------------------------------------------- models that differ
def test_a_flipped_bit_is_found_at_the_next_comparison_and_the_odd_rank_named(tmp_path: Path) -> None:
    orchestrator = guarded(tmp_path, "bit", at=7, workers=3)
    orchestrator.check_divergence(every=5)
    with pytest.raises(DivergenceError) as caught:
        orchestrator.run(max_epochs=2)
    pid = next(line["pid"] for line in lines(tmp_path, "WORKER_JOINED") if line["rank"] == 1)
    text = str(caught.value)
    assert text.startswith(
        f"iteration 10: expected the same model on all ranks, bit by bit, received another one on rank 1 (pid {pid} on "
    )
    assert "model.weight differs, one of 2 tensors; they were equal after iteration 5; test the memory" in text
    assert lines(tmp_path, "RUN_FAILED")[0]["error"] == "DivergenceError"


def test_of_two_ranks_nobody_knows_which_is_odd_so_both_are_named(tmp_path: Path) -> None:
    orchestrator = guarded(tmp_path, "bit", at=2)
    orchestrator.check_divergence(every=2)
    with pytest.raises(DivergenceError, match=r"iteration 2: .* on rank 0 \(pid .*\), rank 1 \(pid"):
        orchestrator.run(max_epochs=2)


def test_ranks_that_differ_are_found_before_a_save_as_well(tmp_path: Path) -> None:
    orchestrator = guarded(tmp_path, "bit", at=7)
    orchestrator.check_divergence(every=100)
    orchestrator.attach(Checkpoint(every={"iterations": 4}))
    with pytest.raises(DivergenceError, match="iteration 8: "):
        orchestrator.run(max_epochs=2)
    assert saved(tmp_path) == [4]


def test_momentum_that_differs_is_found_where_optimizers_are_compared(tmp_path: Path) -> None:
    orchestrator = guarded(tmp_path)
    orchestrator.check_divergence(every=100, optimizer=True)

    @orchestrator.on(Events.ITERATION_COMPLETED(once=2), rank=1)
    def change(engine: Any) -> None:
        optimizer = engine.worker.program.state["optimizer"]
        optimizer.state[optimizer.param_groups[0]["params"][1]]["momentum_buffer"] += 1.0

    orchestrator.on(Events.ITERATION_COMPLETED(once=2), blocking=True)(lambda run: run.checkpoint())
    with pytest.raises(DivergenceError, match=r"optimizer\.state\[1\]\.momentum_buffer differs, one of 4 tensors"):
        orchestrator.run(max_epochs=2)


# ---------------------------------------------------------------- nothing is wrong
def test_a_clean_run_is_the_same_to_the_last_bit_with_guards_and_without(tmp_path: Path) -> None:
    found = {}
    for name in ("without", "with"):
        orchestrator = guarded(tmp_path / name)
        if name == "with":
            orchestrator.attach(TerminateOnNan(parameters=True))
            orchestrator.check_divergence(every=2, optimizer=True)
            orchestrator.attach(Checkpoint(every=1))
        orchestrator.on(Events.COMPLETED)(lambda run, name=name: found.setdefault(name, run.call(weights)))
        assert orchestrator.run(max_epochs=2).status == "completed"
    assert found["with"] == found["without"]
    assert not any(math.isnan(number) for rank in found["with"] for number in rank)
    assert saved(tmp_path / "with") == [7, 14]


# ---------------------------------------------------------------- the command
@pytest.mark.parametrize(
    ("spoil", "code", "text"),
    [
        ("batch", 1, "error: iteration 5: expected finite numbers, received on rank 1: loss is nan; "),
        ("bit", 3, "error: iteration 6: expected the same model on all ranks, bit by bit, received another one on "),
        ("nothing", 0, ""),
    ],
)
def test_the_command_ends_with_the_code_that_says_whose_fault_it_was(
    spoil: str, code: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB.format(spoil=spoil, storage=tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["run", str(job)])
    assert ended.value.code == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert [line.startswith(text) for line in errors] == [True] * bool(text)
    assert saved(tmp_path)[-1] == (14 if code == 0 else 4)
