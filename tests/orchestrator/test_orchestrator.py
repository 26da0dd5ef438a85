"""Whole runs in this process (`workers: 0`): handlers everywhere, checkpoints, and every way to go wrong."""

import os
import shutil
import signal
import threading
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from orchestrator import (
    Best,
    Checkpoint,
    CheckpointError,
    Evaluate,
    HandlerError,
    Orchestrator,
    RankfireError,
    RunInterrupted,
    SpecError,
    SystemFailure,
    TrainingError,
)
from orchestrator.errors import exit_code_of
from tests.orchestrator.linear import build, journal, make, parameters, trained
from workers import Engine, EventEnum, Events, Program
from workers.handlers import EMA, EarlyStopping, TimeLimit


def events(storage: Path, run: str = "linear") -> list[str]:
    return [line["event"] for line in journal(storage, run)]


def failure(orchestrator: Orchestrator, kind: type[RankfireError], **given: Any) -> RankfireError:
    with pytest.raises(kind) as caught:
        orchestrator.run(**({"max_epochs": 2} | given))
    assert type(caught.value) is kind
    return caught.value


# ---------------------------------------------------------------- where handlers run
def test_a_run_ends_with_its_state_metrics_and_journal(tmp_path: Path) -> None:
    result = make(tmp_path).run(max_epochs=2)
    assert (result.status, result.state.iteration, result.state.epoch, result.reason) == ("completed", 6, 2, None)
    assert (set(result.metrics), result.checkpoint) == ({"loss"}, None)
    assert events(tmp_path) == [
        "RUN_STARTED", "WORKER_BUILT", "WORKER_JOINED", "EPOCH_COMPLETED", "EPOCH_COMPLETED", "RUN_COMPLETED",
    ]  # fmt: skip
    assert journal(tmp_path)[-1]["metrics"] == result.metrics


def test_a_driver_handler_runs_once_an_epoch_with_the_reduced_metrics(tmp_path: Path) -> None:
    orchestrator, seen = make(tmp_path), []

    @orchestrator.on(Events.EPOCH_COMPLETED(every=2))
    def tell(run: Orchestrator) -> None:
        seen.append((run.state.epoch, run.state.iteration, run.metrics["loss"]))

    orchestrator.run(max_epochs=4)
    losses = [line["metrics"]["loss"] for line in journal(tmp_path) if line["event"] == "EPOCH_COMPLETED"]
    assert seen == [(2, 6, losses[1]), (4, 12, losses[3])]


def test_an_epoch_is_in_the_journal_with_what_was_measured_of_it_and_not_of_another(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.attach(Evaluate(every=2))
    orchestrator.run(max_epochs=5)
    lines = [line for line in journal(tmp_path) if line["event"].endswith("_COMPLETED")][:-1]
    measured = [line["metrics"] for line in lines if line["event"] == "EVALUATION_COMPLETED"]
    epochs = [line for line in lines if line["event"] == "EPOCH_COMPLETED"]
    assert [line["epoch"] for line in epochs] == [1, 2, 3, 4, 5]
    assert [len(line["metrics"]) for line in epochs] == [1, 1 + len(measured[0]), 1, 1 + len(measured[1]), 1]
    for line, metrics in zip(epochs[1::2], measured, strict=True):
        assert {name: line["metrics"][f"validation/{name}"] for name in metrics} == metrics


def test_observers_see_each_firing_once_in_order(tmp_path: Path) -> None:
    orchestrator, seen = make(tmp_path), []
    orchestrator.on(Events.ITERATION_COMPLETED(every=2))(
        lambda run: seen.append((run.state.iteration, set(run.state.output)))
    )
    orchestrator.run(max_epochs=2)
    assert seen == [(2, {"loss"}), (4, {"loss"}), (6, {"loss"})]


def test_an_observer_that_is_told_in_passing_can_end_training_before_the_epoch_does(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.on(Events.ITERATION_COMPLETED(once=2))(lambda run: run.terminate("enough"))
    result = orchestrator.run(max_epochs=2, epoch_length=10)
    assert (result.status, result.reason) == ("terminated", "enough")
    assert result.state.iteration == 3


@pytest.mark.parametrize("rank", [0, "all", "local_rank_0", [0]])
def test_handlers_for_ranks_run_beside_the_model(tmp_path: Path, rank: Any) -> None:
    orchestrator = make(tmp_path)

    def note(engine: Engine, folder: str) -> None:
        with open(f"{folder}/seen", "a") as file:
            file.write(f"{engine.state.epoch} {engine.worker.rank} {len(engine.worker.program.state)}\n")

    orchestrator.on(Events.EPOCH_COMPLETED, str(tmp_path), rank=rank)(note)
    orchestrator.run(max_epochs=2)
    assert (tmp_path / "seen").read_text() == "1 0 2\n2 0 2\n"


def test_after_a_gate_the_rank_holds_what_the_driver_reduced(tmp_path: Path) -> None:
    orchestrator, seen = make(tmp_path), []
    orchestrator.attach(Evaluate())

    def metrics_of_the_trainer(worker: Any) -> dict[str, float]:
        return dict(worker.program.engines["trainer"].state.metrics)

    orchestrator.on(Events.EPOCH_COMPLETED(once=2))(lambda run: seen.append(run.call(metrics_of_the_trainer, rank=0)))
    orchestrator.run(max_epochs=2)
    evaluations = [line["metrics"]["loss"] for line in journal(tmp_path) if line["event"] == "EVALUATION_COMPLETED"]
    assert seen[0]["validation/loss"] == evaluations[0]  # released at the gate before


def test_evaluation_is_exact_over_an_uneven_last_batch(tmp_path: Path) -> None:
    orchestrator, seen = make(tmp_path), []

    def all_at_once(worker: Any) -> float:
        model, data = worker.program.state["model"], worker.program.data["evaluator"].dataset
        return sum(((model(x) - y) ** 2).item() for x, y in data) / len(data)

    orchestrator.on(Events.COMPLETED)(lambda run: seen.extend((run.evaluate(), run.call(all_at_once, rank=0))))
    orchestrator.run(max_epochs=1)
    assert seen[0]["loss"] == pytest.approx(seen[1], rel=1e-6)


def test_an_evaluation_has_a_prefix_in_the_metrics(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.on(Events.COMPLETED)(lambda run: (run.evaluate(), run.evaluate("evaluator", prefix="test"))[0])
    result = orchestrator.run(max_epochs=1)
    assert set(result.metrics) == {"loss", "validation/loss", "test/loss"}
    assert result.metrics["validation/loss"] == result.metrics["test/loss"]


def test_an_evaluation_leaves_training_as_it_was(tmp_path: Path) -> None:
    quiet, busy = make(tmp_path, "quiet"), make(tmp_path, "busy")
    busy.attach(Evaluate())
    busy.on(Events.ITERATION_COMPLETED, blocking=True)(lambda run: run.evaluate())
    assert trained(busy) == trained(quiet)


def test_another_engine_has_events_and_a_state_of_its_own(tmp_path: Path) -> None:
    orchestrator, seen = make(tmp_path), []
    orchestrator.attach(Evaluate(every=2))
    orchestrator.on(Events.COMPLETED, engine="evaluator")(
        lambda run: seen.append((run.state_of("evaluator").iteration, set(run.state_of("evaluator").metrics)))
    )
    orchestrator.run(max_epochs=4)
    assert seen == [(3, {"loss"})] * 2


def test_call_gives_one_value_or_a_list_of_them(tmp_path: Path) -> None:
    orchestrator, seen = make(tmp_path), []

    @orchestrator.on(Events.COMPLETED)
    def ask(run: Orchestrator) -> None:
        seen.append(run.call(lambda worker, a, b: (worker.rank, a, b), 1, rank=0, b=2))
        seen.append(run.call(lambda worker: worker.world_size))
        seen.append(run.call(lambda worker: worker.rank, rank=[0]))

    orchestrator.run(max_epochs=1)
    assert seen == [(0, 1, 2), [1], [0]]


def test_handlers_run_where_their_phase_says(tmp_path: Path) -> None:
    orchestrator, seen = make(tmp_path), []
    orchestrator.attach(Checkpoint())
    orchestrator.on(Events.EPOCH_COMPLETED)(
        lambda run: seen.append(("validation/loss" in run.metrics, saves(tmp_path)))
    )
    orchestrator.attach(Evaluate())
    orchestrator.run(max_epochs=2)
    # the save of the first epoch was begun behind this handler; it may be committed by now, or still be written
    (evaluated, before), (again, (name,)) = seen
    assert (evaluated, before, again, name.partition(".")[0]) == (True, [], True, "step-00000003")


def test_notes_of_ones_own_go_into_the_journal(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.on(Events.EPOCH_COMPLETED)(lambda run: run.note("MY_NOTE", value=7))
    orchestrator.run(max_epochs=1)
    assert [line["value"] for line in journal(tmp_path) if line["event"] == "MY_NOTE"] == [7]


# ---------------------------------------------------------------- checkpoints
def saves(storage: Path, run: str = "linear") -> list[str]:
    folder = storage / run / "checkpoints"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("field", ["event", "time", "generation", "epoch", "iteration"])
def test_a_note_does_not_overwrite_what_every_line_says(tmp_path: Path, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        make(tmp_path).note("X", **{field: -5, "mine": 1})
    assert str(caught.value) == (
        f"orchestrator.note('X'): expected names that are not those of every line, received {field!r}; call it "
        f"{field}_ or the like"
    )


@pytest.mark.parametrize("name", ["iteration", "epoch", "epoch_length", "max_epochs", "max_iters"])
def test_where_the_ranks_are_is_not_the_drivers_to_say(tmp_path: Path, name: str) -> None:
    orchestrator = make(tmp_path)
    orchestrator.attach(Checkpoint())
    orchestrator.on(Events.EPOCH_COMPLETED)(lambda run: setattr(run.state, name, 77))
    error = failure(orchestrator, HandlerError)
    assert f"AttributeError: run.state.{name}: expected what " in str(error)
    assert ", received 77; " in str(error)
    assert getattr(orchestrator.state, name) != 77


def test_what_handlers_hang_on_the_drivers_state_is_theirs(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.on(Events.EPOCH_COMPLETED)(lambda run: setattr(run.state, "mine", run.state.epoch))
    assert orchestrator.run(max_epochs=2).state.mine == 2


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.on(Events.EPOCH_COMPLETED)(
        lambda run: run.metrics.__setitem__("score", {1: 0.1, 2: 0.9}.get(run.state.epoch, 0.5))
    )
    orchestrator.attach(Checkpoint(keep=2, best=Best("score")))
    result = orchestrator.run(max_epochs=5)
    assert saves(tmp_path) == ["step-00000006", "step-00000012", "step-00000015"]
    assert result.checkpoint == str(tmp_path / "linear" / "checkpoints" / "step-00000015")
    assert [line["checkpoint"] for line in journal(tmp_path) if line["event"] == "CHECKPOINT_PRUNED"] == [
        "step-00000003",
        "step-00000009",
    ]


def test_a_metric_that_does_not_exist_is_told_with_the_nearest_one(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.attach(Evaluate())
    orchestrator.attach(Checkpoint(best=Best("validation/los")))
    assert str(failure(orchestrator, SpecError)) == (
        "checkpoint.best.metric: expected the name of a reduced metric, received 'validation/los'; "
        "did you mean 'validation/loss'?"
    )


def test_the_same_run_id_goes_on_and_ends_bit_equal(tmp_path: Path) -> None:
    first, second, whole = make(tmp_path), make(tmp_path), make(tmp_path, "whole")
    for orchestrator in (first, second):
        orchestrator.attach(Checkpoint())
    first.run(max_epochs=1)
    assert trained(second) == trained(whole)
    assert events(tmp_path).count("EPOCH_COMPLETED") == 3
    (resumed,) = [line for line in journal(tmp_path) if line["event"] == "RESUMED"]
    assert (resumed["checkpoint"], resumed["epoch"], resumed["iteration"]) == ("step-00000003", 1, 3)


def test_a_resumed_run_fires_resumed_and_not_started(tmp_path: Path) -> None:
    seen: list[tuple[int, str]] = []
    for number in (1, 2):
        orchestrator = make(tmp_path)
        orchestrator.attach(Checkpoint())
        for event in (Events.STARTED, Events.RESUMED):
            orchestrator.on(event, number, event.key)(lambda run, number, key: seen.append((number, key)))
        orchestrator.run(max_epochs=number)
    assert seen == [(1, "STARTED"), (2, "RESUMED")]


def interrupted(storage: Path, run: str, iteration: int, **given: Any) -> str:
    orchestrator = make(storage, run)
    orchestrator.attach(Checkpoint())
    orchestrator.on(Events.ITERATION_COMPLETED(once=iteration), rank=0)(lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(RankfireError) as caught:
        orchestrator.run(**({"max_epochs": 3} | given))
    assert exit_code_of(caught.value) == 130
    return str(caught.value)


@pytest.mark.parametrize("iteration", [1, 3, 4, 5, 9])
def test_ctrl_c_saves_at_the_next_iteration_and_the_run_goes_on_bit_equal(tmp_path: Path, iteration: int) -> None:
    text = interrupted(tmp_path, "linear", iteration)
    reached = journal(tmp_path)[-1]["iteration"]
    assert iteration <= reached <= iteration + 1
    left = (
        "; the same command goes on from there"
        if reached < 9
        else ", with which it is done: there is nothing left to do"
    )
    assert text == f"run 'linear' was interrupted after iteration {reached}; saved as {saves(tmp_path)[-1]}{left}"
    assert saves(tmp_path)[-1].startswith(f"step-{reached:08d}")
    assert events(tmp_path)[-1] == "RUN_INTERRUPTED"
    if reached < 9:
        assert trained(make(tmp_path)) == trained(make(tmp_path, "whole"))


def test_ctrl_c_in_an_evaluation_saves_though_no_checkpoint_was_due(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.attach(Checkpoint(every=100))
    orchestrator.on(Events.ITERATION_COMPLETED(once=2), rank=0, engine="evaluator")(
        lambda: os.kill(os.getpid(), signal.SIGINT)
    )
    orchestrator.on(Events.ITERATION_COMPLETED(once=2), blocking=True)(lambda run: run.evaluate())
    with pytest.raises(RankfireError, match="was interrupted after iteration 2"):
        orchestrator.run(max_epochs=3)
    assert saves(tmp_path) == ["step-00000002"]
    assert trained(make(tmp_path)) == trained(make(tmp_path, "whole"))


def test_ctrl_c_at_an_epochs_end_saves_once(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.attach(Checkpoint())
    orchestrator.on(Events.EPOCH_COMPLETED(once=2), rank=0)(lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(RankfireError, match="was interrupted after iteration 6"):
        orchestrator.run(max_epochs=3)
    assert saves(tmp_path) == ["step-00000003", "step-00000006"]


def test_ctrl_c_before_training_stops_it_before_it_begins(tmp_path: Path) -> None:
    def build_and_press(worker: Any) -> Program:
        os.kill(os.getpid(), signal.SIGINT)
        return build(worker)

    with pytest.raises(RankfireError, match=r"run 'linear' was interrupted before it trained; nothing was saved$"):
        Orchestrator(build_and_press, workers=0, run="linear", storage=tmp_path).run(max_epochs=3)


def test_ctrl_c_without_a_checkpoint_handler_saves_nothing(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.on(Events.ITERATION_COMPLETED(once=1), rank=0)(lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(RankfireError, match="was interrupted after iteration"):
        orchestrator.run(max_epochs=3)
    assert saves(tmp_path) == []


def test_ctrl_c_twice_stops_now(tmp_path: Path) -> None:
    def press_twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    orchestrator = make(tmp_path)
    orchestrator.attach(Checkpoint())
    orchestrator.on(Events.ITERATION_COMPLETED(once=2), rank=0)(press_twice)
    with pytest.raises(RankfireError) as caught:
        orchestrator.run(max_epochs=3)
    assert (str(caught.value), exit_code_of(caught.value)) == (
        "run 'linear' was interrupted at once; nothing was saved",
        130,
    )
    assert (saves(tmp_path), events(tmp_path)[-1]) == ([], "RUN_INTERRUPTED")


@pytest.mark.parametrize(("metric", "told"), [("validation/mse", True), ("loss", False)])
def test_early_stopping_that_never_judged_says_so_at_the_end(
    metric: str, told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    orchestrator = make(tmp_path)
    orchestrator.attach(EarlyStopping(metric, patience=5))
    orchestrator.run(max_epochs=2)
    assert (f"EarlyStopping: {metric!r} was never measured" in caplog.text) == told


def test_after_a_run_ctrl_c_is_what_it_was_before(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    make(tmp_path).run(max_epochs=1)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path: Path) -> None:
    results: list[str] = []
    orchestrator = make(tmp_path)
    thread = threading.Thread(target=lambda: results.append(orchestrator.run(max_epochs=1).status))
    thread.start()
    thread.join(timeout=60)
    assert results == ["completed"]


def test_a_completed_run_returns_at_once_and_can_be_extended(tmp_path: Path) -> None:
    for epochs in (2, 2, 3):
        orchestrator = make(tmp_path)
        orchestrator.attach(Checkpoint())
        result = orchestrator.run(max_epochs=epochs)
        assert (result.status, result.state.epoch, "loss" in result.metrics) == ("completed", epochs, True)
    assert [line.get("already") for line in journal(tmp_path) if line["event"] == "RUN_COMPLETED"] == [None, True, None]
    assert saves(tmp_path) == ["step-00000003", "step-00000006", "step-00000009"]


def test_max_iters_counts_over_resumes(tmp_path: Path) -> None:
    for iterations in (3, 3, 5):
        orchestrator = make(tmp_path)
        orchestrator.attach(Checkpoint())
        assert orchestrator.run(max_iters=iterations).state.iteration == iterations
    assert [line.get("already") for line in journal(tmp_path) if line["event"] == "RUN_COMPLETED"] == [None, True, None]


def test_resume_never_refuses_a_run_that_has_checkpoints(tmp_path: Path) -> None:
    first = make(tmp_path)
    first.attach(Checkpoint())
    first.run(max_epochs=1)
    assert str(failure(make(tmp_path), SpecError, resume="never")) == (
        f"run 'linear': expected a run that does not exist yet, since resume is never, received one in "
        f"{tmp_path}/linear; choose another run id, or start anew with --fresh, which moves the old one aside"
    )
    assert events(tmp_path)[-1] == "RUN_COMPLETED"
    assert make(tmp_path).run(max_epochs=1).checkpoint == f"{tmp_path}/linear/checkpoints/step-00000003"


def test_a_fresh_start_moves_the_run_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        orchestrator = make(tmp_path)
        orchestrator.attach(Checkpoint())
        orchestrator.run(max_epochs=1, fresh=True, resume="never")
        assert number == 0 or f"what run 'linear' had is now {tmp_path}/linear.old-{number}" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linear", "linear.old-1", "linear.old-2"]
    for run in ("linear", "linear.old-1"):
        assert (saves(tmp_path, run), events(tmp_path, run).count("RUN_STARTED")) == (["step-00000003"], 1)


def test_resume_never_starts_a_new_run(tmp_path: Path) -> None:
    assert make(tmp_path).run(max_epochs=1, resume="never").state.epoch == 1


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = make(tmp_path), make(tmp_path)
    for orchestrator in (first, second):
        orchestrator.attach(Checkpoint())
    first.run(max_epochs=2)
    (tmp_path / "linear" / "checkpoints" / "step-00000006" / "ranks" / "rank-0000.pt").unlink()
    assert trained(second) == trained(make(tmp_path, "whole"))
    told = (
        "checkpoint step-00000006: ranks/rank-0000.pt is missing; trying the one before it, and this one is now "
        "step-00000006.damaged-1"
    )
    assert f"rankfire: {told}\n" in capsys.readouterr().err
    assert [line["text"] for line in journal(tmp_path) if line["event"] == "CHECKPOINT_REFUSED"] == [told]


def test_a_handler_with_a_state_gets_it_back(tmp_path: Path) -> None:
    class Count:
        def __init__(self) -> None:
            self.epochs = 0

        def attach(self, orchestrator: Orchestrator) -> None:
            orchestrator.on(Events.EPOCH_COMPLETED)(self.count)

        def count(self) -> None:
            self.epochs += 1

        def state_dict(self) -> dict[str, int]:
            return {"epochs": self.epochs}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.epochs = state["epochs"]

    for epochs in (1, 3):
        orchestrator, one, two = make(tmp_path), Count(), Count()
        two.epochs = 10
        for handler in (one, two, Checkpoint()):
            orchestrator.attach(handler)
        orchestrator.run(max_epochs=epochs)
    assert (one.epochs, two.epochs) == (3, 13)
    assert set(orchestrator.stateful) == {"Count", "Count#2"}


def test_a_checkpoint_that_can_not_be_written_is_a_system_failure(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.on(Events.EPOCH_COMPLETED)(lambda run: run.checkpoint())
    (tmp_path / "linear").mkdir()
    (tmp_path / "linear" / "checkpoints").write_text("in the way")
    error = failure(orchestrator, CheckpointError)
    assert str(error) == f"checkpoint {tmp_path}/linear/checkpoints: can't be written: Not a directory"
    assert exit_code_of(error) == 3


def test_a_metric_that_can_not_travel_to_the_ranks_is_named(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.on(Events.EPOCH_COMPLETED)(lambda run: run.metrics.update(odd=threading.Lock()))
    assert str(failure(orchestrator, SpecError)) == (
        "run.metrics['odd']: expected something that can be pickled and sent to the ranks, received lock: TypeError: "
        "cannot pickle '_thread.lock' object; make what it refers to inside the function, or pass plain values"
    )


class StepEvents(EventEnum):
    """Events of a step's own."""

    MIDDLE = "middle"


def fire_middle(engine: Engine) -> None:
    engine.fire_event(StepEvents.MIDDLE)


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (Events.GET_BATCH_STARTED(once=2), "GET_BATCH_STARTED #2"),
        (Events.GET_BATCH_COMPLETED(once=2), "GET_BATCH_COMPLETED #2"),
        (Events.ITERATION_STARTED(once=2), "ITERATION_STARTED #2"),
        (StepEvents.MIDDLE(once=1), "middle #1"),
    ],
)
def test_a_checkpoint_in_the_middle_of_an_iteration_is_refused(tmp_path: Path, event: Any, told: str) -> None:
    orchestrator = make(tmp_path)
    orchestrator.on(Events.ITERATION_STARTED(once=2), rank=0)(fire_middle)
    orchestrator.on(event, blocking=True)(lambda run: run.checkpoint())
    assert str(failure(orchestrator, SpecError)) == (
        f"orchestrator.checkpoint: expected all ranks between two iterations of the trainer, received trainer {told}, "
        "with an iteration in progress; do it at ITERATION_COMPLETED, or at the end of an epoch"
    )
    assert saves(tmp_path) == []


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("event", [Events.STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED])
def test_a_checkpoint_within_an_evaluation_is_refused(tmp_path: Path, event: Any, blocking: bool) -> None:
    orchestrator = make(tmp_path)
    orchestrator.attach(EMA(decay=0.5))  # the model holds the averages as long as it is evaluated
    orchestrator.attach(Evaluate("evaluator"))
    orchestrator.on(event, engine="evaluator", blocking=blocking)(lambda run: run.checkpoint())
    within = f"evaluator {event.key} #1, in the middle of an evaluation"
    received = within if blocking else "evaluate('evaluator') in progress"
    assert str(failure(orchestrator, SpecError)) == (
        f"orchestrator.checkpoint: expected all ranks between two iterations of the trainer, received {received}; "
        "do it behind that: when evaluate or call has returned, or at the trainer's EPOCH_COMPLETED"
    )
    assert saves(tmp_path) == []


def test_behind_an_evaluation_the_models_own_weights_are_saved(tmp_path: Path) -> None:
    def averaged(run: str, epochs: int) -> Any:
        orchestrator = make(tmp_path, run)
        orchestrator.attach(EMA(decay=0.5))

        @orchestrator.on(Events.EPOCH_COMPLETED)
        def save(now: Orchestrator) -> None:
            now.evaluate("evaluator")
            now.checkpoint(wait=True)

        ended: list[Any] = []
        orchestrator.on(Events.COMPLETED)(lambda now: ended.append(now.call(parameters, rank=0)))
        orchestrator.run(max_epochs=epochs)
        return ended[-1]

    averaged("linear", 1)
    assert averaged("linear", 3) == averaged("whole", 3)


@pytest.mark.parametrize(
    "event",
    [
        Events.ITERATION_COMPLETED(once=5),
        Events.EPOCH_STARTED(once=2),
        Events.STARTED,
    ],
    ids=repr,
)
def test_a_run_goes_on_bit_equal_from_whatever_event_it_was_saved_at(tmp_path: Path, event: Any) -> None:
    orchestrator = make(tmp_path)
    orchestrator.on(event, blocking=True)(lambda run: run.checkpoint())
    orchestrator.on(Events.ITERATION_COMPLETED(once=6), rank=0)(lambda: [].pop())
    assert "IndexError" in str(failure(orchestrator, TrainingError))
    assert trained(make(tmp_path)) == trained(make(tmp_path, "whole"))


def test_to_wait_for_a_checkpoint_is_to_have_it_committed(tmp_path: Path) -> None:
    orchestrator, seen = make(tmp_path), []

    @orchestrator.on(Events.EPOCH_COMPLETED(once=1))
    def save(run: Orchestrator) -> None:
        url = run.checkpoint(wait=True)
        seen.append((url, saves(tmp_path), events(tmp_path)[-1]))

    orchestrator.run(max_epochs=2)
    name = "step-00000003"
    assert seen == [(f"{tmp_path}/linear/checkpoints/{name}", [name], "CHECKPOINT_COMMITTED")]


@pytest.mark.parametrize("stopped", [False, True])
def test_what_is_due_within_an_evaluation_is_saved_at_the_next_boundary(tmp_path: Path, stopped: bool) -> None:
    def averaged(run: str, epochs: int, strikes: bool) -> Any:
        orchestrator, now, ended = make(tmp_path, run), [0.0], []
        handler = Checkpoint(every={"seconds": 10.0}, keep=9, clock=lambda: now[0])
        for each in (EMA(decay=0.5), Evaluate("evaluator"), handler):
            orchestrator.attach(each)

        @orchestrator.on(Events.EPOCH_COMPLETED, engine="evaluator")
        def time_passes(now_running: Orchestrator) -> None:
            if strikes and now_running.state.epoch == 1:
                os.kill(os.getpid(), signal.SIGINT) if stopped else None
                for _ in range(2):
                    handler.tick(now_running)
                    now[0] += 11.0
                handler.tick(now_running)

        orchestrator.on(Events.COMPLETED)(lambda run: ended.append(run.call(parameters, rank=0)))
        with suppress(RunInterrupted):
            orchestrator.run(max_epochs=epochs)
        return ended[-1:]

    averaged("linear", 2, True)
    assert saves(tmp_path)[0] == "step-00000003"  # which the ranks had completed
    assert ("RUN_INTERRUPTED" in events(tmp_path)) is stopped
    shutil.rmtree(tmp_path / "linear/checkpoints/step-00000006", ignore_errors=True)
    assert averaged("linear", 3, False) == averaged("whole", 3, False)


def test_every_few_iterations_a_checkpoint_is_saved_and_at_the_end(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.attach(Checkpoint(every={"iterations": 2}, keep=9))
    orchestrator.run(max_epochs=1)
    assert saves(tmp_path) == ["step-00000002", "step-00000003"]


def test_a_checkpoint_that_is_due_by_the_clock_is_saved_between_two_iterations(tmp_path: Path) -> None:
    orchestrator, now = make(tmp_path), [0.0]
    handler = Checkpoint(every={"seconds": 10.0}, keep=9, clock=lambda: now[0])
    orchestrator.attach(handler)

    @orchestrator.on(Events.ITERATION_COMPLETED(once=2), blocking=True)
    def time_passes(run: Orchestrator) -> None:
        handler.tick(run)
        now[0] += 11.0
        handler.tick(run)
        handler.tick(run)

    orchestrator.run(max_epochs=2)
    assert saves(tmp_path)[0] in ("step-00000002", "step-00000003")
    assert saves(tmp_path)[1:] == ["step-00000006"]
    assert trained(make(tmp_path), max_epochs=3) == trained(make(tmp_path, "whole"), max_epochs=3)


def test_what_waits_for_a_boundary_is_called_there_once(tmp_path: Path) -> None:
    orchestrator, seen = make(tmp_path), []

    @orchestrator.on(Events.ITERATION_COMPLETED(once=2), blocking=True)
    def ask(run: Orchestrator) -> None:
        def there() -> None:
            seen.append((run.state.iteration, run.call(lambda worker: worker.rank)))

        run.at_boundary(there)
        run.at_boundary(there)

    orchestrator.run(max_epochs=2)
    assert len(seen) == 1
    assert seen[0][0] in (2, 3)


def test_a_manifest_tells_the_rule_of_the_best_the_owner_and_the_place_in_the_data(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.attach(Checkpoint(best=Best("loss", "min")))
    orchestrator.run(max_epochs=1)
    (made,) = orchestrator.registry.committed()
    manifest = made.manifest
    assert (manifest.best, manifest.token, manifest.spec) == ({"metric": "loss", "mode": "min"}, 1, "")
    assert (manifest.cursor, manifest.state) == ({"seed": 0, "position": 12}, {"model": 16, "optimizer": 32})


def test_other_data_than_that_of_the_checkpoint_is_refused(tmp_path: Path) -> None:
    first, second = make(tmp_path), make(tmp_path, seed=1)
    for orchestrator in (first, second):
        orchestrator.attach(Checkpoint())
    first.run(max_epochs=1)
    text = str(failure(second, SpecError))
    assert text.startswith("run: data: seed: expected 0, as in the checkpoint, received 1")


def test_a_new_run_starts_from_a_part_of_another(tmp_path: Path) -> None:
    first = make(tmp_path, "base")
    first.attach(Checkpoint())
    weights = trained(first, max_epochs=1)
    second, seen = make(tmp_path, "fine"), []
    second.start_from("base@latest", state=["model"])
    second.on(Events.STARTED)(lambda run: seen.append((run.state.iteration, run.call(parameters, rank=0))))
    second.run(max_epochs=1)
    assert seen == [(0, weights)]
    (line,) = [line for line in journal(tmp_path, "fine") if line["event"] == "STARTED_FROM"]
    assert line["checkpoint"] == f"{tmp_path}/base/checkpoints/step-00000003"


def test_versions_that_changed_since_the_checkpoint_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = make(tmp_path), make(tmp_path)
    for orchestrator in (first, second):
        orchestrator.attach(Checkpoint())
    monkeypatch.setattr("workers.versions.version", lambda package: "1.0")
    first.run(max_epochs=1)
    monkeypatch.undo()
    second.run(max_epochs=2)
    (line,) = [line for line in journal(tmp_path) if line["event"] == "VERSIONS_CHANGED"]
    assert "torch 1.0 → 2" in line["text"]
    assert "step-00000003 was made with other versions: " in capsys.readouterr().err


# ---------------------------------------------------------------- what goes wrong
def line_of(text: str) -> str:
    """The line of the program that raises an exception with this text."""
    lines = Path(str(build.__code__.co_filename)).read_text().splitlines()
    return f"linear.py:{next(number for number, line in enumerate(lines, start=1) if text in line)}"


def test_an_exception_in_a_step_ends_the_run_with_its_rank(tmp_path: Path) -> None:
    error = failure(make(tmp_path, config={"fail": "step"}), TrainingError)
    assert (str(error), exit_code_of(error)) == (f"rank 0 raised ValueError: wrong shape ({line_of('wrong shape')})", 1)
    assert isinstance(error, TrainingError)
    assert error.traceback.count("Traceback (most recent call last)") == 1
    assert 'raise ValueError("wrong shape")' in error.traceback
    last = journal(tmp_path)[-1]
    assert (last["event"], last["error"], last["text"]) == ("RUN_FAILED", "TrainingError", str(error))


@pytest.mark.parametrize(
    ("fail", "text"),
    [
        ("build", "no such data set"),
        ("evaluator", "no labels"),
    ],
)
def test_an_exception_in_build_or_evaluation_is_told_the_same_way(tmp_path: Path, fail: str, text: str) -> None:
    orchestrator = make(tmp_path, config={"fail": fail})
    orchestrator.attach(Evaluate())
    assert f": {text} ({line_of(text)})" in str(failure(orchestrator, TrainingError))
    assert events(tmp_path)[-1] == "RUN_FAILED"


def test_an_exception_in_a_driver_handler_names_it(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)

    @orchestrator.on(Events.EPOCH_COMPLETED)
    def draw(run: Orchestrator) -> None:
        raise KeyError("no axis")

    error = failure(orchestrator, HandlerError)
    where = f"{draw.__name__} ({__file__}:{draw.__code__.co_firstlineno + 2})"
    assert str(error) == f"driver handler {where} at EPOCH_COMPLETED #1 raised KeyError: 'no axis'"
    assert exit_code_of(error) == 1
    assert isinstance(error, TrainingError)
    assert "no axis" in error.traceback


def test_an_exception_in_a_handler_on_a_rank_names_the_rank(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)

    @orchestrator.on(Events.EPOCH_COMPLETED, rank=0)
    def look(engine: Engine) -> None:
        raise IndexError("no such layer")

    assert str(failure(orchestrator, TrainingError)) == (
        f"rank 0 raised IndexError: no such layer (test_orchestrator.py:{look.__code__.co_firstlineno + 2})"
    )


@pytest.mark.parametrize("event", [Events.ITERATION_COMPLETED(once=3), Events.COMPLETED])
def test_an_exception_that_is_suppressed_on_a_rank_ends_the_run_all_the_same(tmp_path: Path, event: Any) -> None:
    orchestrator, told = make(tmp_path), []
    orchestrator.attach(Checkpoint())

    def fail(engine: Engine) -> None:
        raise ValueError("beside the model")

    orchestrator.on(event, rank=0)(fail)
    orchestrator.on(Events.EXCEPTION_RAISED, rank=0)(Engine.suppress)
    orchestrator.on(Events.EXCEPTION_RAISED)(lambda run, error: told.append(str(error)))
    error = failure(orchestrator, TrainingError)
    assert "rank 0 raised ValueError: beside the model" in str(error)
    assert told == [str(error)]


@pytest.mark.parametrize("ending", [Engine.terminate, Engine.interrupt])
def test_ranks_that_end_before_the_goal_are_told_as_terminated(tmp_path: Path, ending: Any) -> None:
    orchestrator = make(tmp_path)
    orchestrator.on(Events.ITERATION_COMPLETED(once=4), rank="all")(ending)
    result = orchestrator.run(max_epochs=2)
    assert (result.status, result.state.iteration) == ("terminated", 4)
    assert result.reason is not None
    assert result.reason.startswith("the ranks ended before the goal")
    assert journal(tmp_path)[-1]["status"] == "terminated"


def test_an_exception_in_a_called_function_is_the_callers(tmp_path: Path) -> None:
    orchestrator, seen = make(tmp_path), []

    def broken(worker: object) -> None:
        raise LookupError("not there")

    @orchestrator.on(Events.COMPLETED)
    def ask(run: Orchestrator) -> None:
        with pytest.raises(TrainingError) as caught:
            run.call(broken)
        seen.append((str(caught.value), caught.value.ranks))

    assert orchestrator.run(max_epochs=1).status == "completed"
    assert seen == [
        (
            "orchestrator.call: rank 0 raised LookupError: not there "
            f"(test_orchestrator.py:{broken.__code__.co_firstlineno + 1})",
            (0,),
        )
    ]


def test_a_handler_can_not_swallow_what_ended_the_run(tmp_path: Path) -> None:
    orchestrator = make(tmp_path, config={"fail": "evaluator"})

    @orchestrator.on(Events.EPOCH_COMPLETED)
    def careless(run: Orchestrator) -> None:
        try:
            run.evaluate()
        except Exception:
            print("never mind")

    assert str(failure(orchestrator, TrainingError)) == (
        f"rank 0 raised RuntimeError: no labels ({line_of('no labels')})"
    )


def test_a_build_that_gives_something_else_is_told(tmp_path: Path) -> None:
    orchestrator = Orchestrator(lambda worker: 7, workers=0, storage=tmp_path)
    assert "expected it to return a Program, received int" in str(failure(orchestrator, TrainingError))


@pytest.mark.parametrize(
    ("order", "text"),
    [
        (
            lambda run: run.evaluate("evaluater"),
            "orchestrator.evaluate: expected an engine of the program ('trainer', 'evaluator'), received 'evaluater'; "
            "did you mean 'evaluator'?",
        ),
        (
            lambda run: run.call(print, rank=3),
            "orchestrator.call(rank=3): expected rank 0, or 'all', received 3 (int); write for example rank=0 or "
            "rank='all'",
        ),
        (
            lambda run: run.call(print, rank="al"),
            "orchestrator.call(rank='al'): expected rank 0, or 'all', received 'al' (str); write for example rank=0 or "
            "rank='all'",
        ),
        (
            lambda run: run.call(print, rank=False),
            "orchestrator.call(rank=False): expected rank 0, or 'all', received False (bool); write for example rank=0 "
            "or rank='all'",
        ),
    ],
)
def test_orders_that_name_nobody_are_refused(tmp_path: Path, order: Any, text: str) -> None:
    orchestrator = make(tmp_path)
    orchestrator.on(Events.EPOCH_COMPLETED)(order)
    assert str(failure(orchestrator, SpecError)) == text


@pytest.mark.parametrize("where", [{}, {"rank": 0}])
def test_a_handler_of_an_engine_that_is_not_there_is_refused(tmp_path: Path, where: dict[str, Any]) -> None:
    orchestrator = make(tmp_path)
    orchestrator.on(Events.COMPLETED, engine="tester", **where)(print)
    error = failure(orchestrator, SpecError)
    assert str(error) == (
        "orchestrator.on(engine='tester'): expected an engine of the program ('trainer', 'evaluator'), received "
        "'tester'; name one of them"
    )
    assert exit_code_of(error) == 2


@pytest.mark.parametrize("order", ["evaluate", "checkpoint", "terminate"])
def test_orders_outside_a_run_are_refused(tmp_path: Path, order: str) -> None:
    with pytest.raises(SpecError) as caught:
        getattr(make(tmp_path), order)()
    assert (
        str(caught.value)
        == f"orchestrator.{order}: expected a run in progress, received none; call it inside a handler"
    )


def test_orders_outside_a_gate_are_refused(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.on(Events.ITERATION_COMPLETED(once=1))(lambda run: run.evaluate())
    assert str(failure(orchestrator, SpecError)) == (
        "orchestrator: evaluate, checkpoint, call: expected ranks that wait at a gate, received ranks that train on; "
        "give the order inside a blocking "
        "driver handler, such as one of EPOCH_COMPLETED, or register yours with blocking=True"
    )


# ---------------------------------------------------------------- wrong use
def test_an_orchestrator_runs_once(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.run(max_epochs=1)
    with pytest.raises(
        SpecError,
        match=r"^orchestrator.run: expected an orchestrator that has not run, received one that has; make another",
    ):
        orchestrator.run(max_epochs=2)


def test_wrong_numbers_leave_the_orchestrator_as_it_was(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    for given in ({}, {"max_epochs": 0}, {"max_epochs": 1, "resume": "maybe"}):
        with pytest.raises(SpecError, match=r"^orchestrator\.run[:(]"):
            orchestrator.run(**given)  # type: ignore[arg-type]
    assert orchestrator.run(max_epochs=1).status == "completed"


def test_the_same_run_id_can_not_run_twice_at_once(tmp_path: Path) -> None:
    orchestrator, refused = make(tmp_path), []

    @orchestrator.on(Events.STARTED)
    def begin_another() -> None:
        with pytest.raises(SystemFailure) as caught:
            make(tmp_path).run(max_epochs=1)
        refused.append(str(caught.value))

    assert orchestrator.run(max_epochs=1).status == "completed"
    (text,) = refused
    assert text.startswith(f"run 'linear': expected nobody to be running it, received pid {os.getpid()} on ")
    assert text.endswith("; wait for it to end, stop it, or choose another run id")


def test_storage_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "linear").write_text("in the way")
    error = failure(make(tmp_path), SystemFailure)
    assert str(error) == (
        f"storage: {tmp_path}/linear: expected a folder, received a file; move it away, or take another run id"
    )


def test_handlers_for_ranks_are_registered_before_the_run(tmp_path: Path) -> None:
    orchestrator, refused = make(tmp_path), []

    @orchestrator.on(Events.EPOCH_COMPLETED)
    def late(run: Orchestrator) -> None:
        for given in ({"rank": 0}, {"engine": "evaluator"}, {}):
            with pytest.raises(SpecError) as caught:
                run.on(Events.STARTED, **given)(print)  # type: ignore[arg-type]
            refused.append(str(caught.value))

    orchestrator.run(max_epochs=1)
    assert refused == [
        f"orchestrator.on({where}): expected handlers to be registered before the run starts, received one in "
        f"a started run, whose ranks {what}; register it before run()"
        for where, what in (
            ("rank=0", "take no more handlers"),
            ("engine='evaluator'", "do not report engine 'evaluator'"),
            ("STARTED", "do not report STARTED of engine 'trainer' there"),
        )
    ]


def test_a_handler_can_be_taken_off(tmp_path: Path) -> None:
    orchestrator, seen = make(tmp_path), []
    handle = orchestrator.listen(Events.EPOCH_COMPLETED, lambda run: (seen.append(run.state.epoch), handle.remove())[0])
    orchestrator.run(max_epochs=3)
    assert seen == [1]


def test_blocking_is_no_word_for_ranks(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"^orchestrator.on\(blocking=True, rank=0\): expected .* received both; leave"):
        make(tmp_path).on(Events.COMPLETED, rank=0, blocking=True)


def test_the_state_of_an_engine_without_handlers_is_unknown_and_makes_none(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    with pytest.raises(SpecError) as caught:
        orchestrator.state_of("evaluater")
    assert str(caught.value) == (
        "orchestrator.state_of: expected an engine that has handlers here ('trainer'), received 'evaluater'; register "
        "one with orchestrator.on(event, engine=…) first"
    )
    assert orchestrator.run(max_epochs=1).status == "completed"


def test_what_is_attached_knows_how(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"expected an object with attach\(orchestrator\), received <built-in.*print>"):
        make(tmp_path).attach(print)
    with pytest.raises(
        SpecError, match=r"received <class .*EMA.*>; make one of the class: orchestrator\.attach\(Class"
    ):
        make(tmp_path).attach(EMA)


def test_a_refusal_comes_without_our_frames_and_one_of_a_handlers_line_with_it(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.start_from("nobody@best")
    with pytest.raises(SpecError) as caught:
        orchestrator.run(max_epochs=1)
    assert [entry.name for entry in caught.traceback][1:] == ["run"]
    orchestrator = make(tmp_path)
    orchestrator.on(Events.STARTED)(lambda run: run.evaluate("nobody"))
    with pytest.raises(SpecError) as caught:
        orchestrator.run(max_epochs=1)
    assert "test_orchestrator.py" in str(caught.traceback[-10:])


def test_a_run_says_at_its_start_who_trains_and_where_all_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path).run(max_epochs=1)
    told = f"rankfire: run 'linear': 1 rank, in this process; what it keeps goes to {tmp_path / 'linear'}"
    assert told in capsys.readouterr().err.splitlines()


# ---------------------------------------------------------------- names
@pytest.mark.parametrize("package", ["orchestrator", "workers"])
def test_every_name_of_the_faces_is_there(package: str) -> None:
    face = import_module(package)
    assert [name for name in face.__all__ if getattr(face, name, None) is None] == []
    assert sorted(face.__all__) == face.__all__
    assert set(face.__all__) <= set(dir(face))
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Nothing'"):
        _ = face.Nothing


def test_each_ranks_own_value_stands_beside_the_reduced_one(tmp_path: Path) -> None:
    orchestrator, seen = make(tmp_path), []

    @orchestrator.on(Events.EPOCH_COMPLETED)
    def look(run: Orchestrator) -> None:
        evaluated = run.evaluate()["loss"]
        seen.append(run.per_rank("loss") == [run.metrics["loss"]])
        seen.append(run.per_rank("loss", engine="evaluator") == [evaluated])
        with pytest.raises(SpecError, match=r"a metric that ranks have told of engine 'trainer', .* there are 'loss'"):
            run.per_rank("validation/loss")

    orchestrator.run(2)
    assert seen == [True] * 4


class Counter:
    """Attaches itself on ranks, or counts on the driver."""

    def __init__(self, *ranks: Any) -> None:
        self.ranks = ranks
        self.count = 0

    def attach(self, target: Any) -> None:
        if isinstance(target, Engine):
            target.add_event_handler(Events.ITERATION_COMPLETED, self)
            target.attach("counter", self)
        else:
            target.send(self, rank=self.ranks[0] if self.ranks else "all")

    def __call__(self) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def counted(worker: Any) -> int:
    return worker.program.engines["trainer"].attached["counter"].count  # type: ignore[no-any-return]


def test_what_is_sent_attaches_itself_on_the_rank_and_keeps_its_state_there(tmp_path: Path) -> None:
    for epochs, expected in ((2, 6), (4, 12)):
        orchestrator, seen = make(tmp_path), []
        counter = Counter()
        orchestrator.attach(counter)
        orchestrator.attach(Checkpoint())
        orchestrator.on(Events.COMPLETED)(lambda run, seen=seen: seen.append(run.call(counted, rank=0)))
        orchestrator.run(epochs)
        assert seen == [expected]
        assert counter.count == 0  # that of the driver stays as it was
        assert counter not in orchestrator.stateful.values()


def test_what_cant_be_sent_is_refused(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    with pytest.raises(SpecError, match=r"orchestrator\.send\(rank=3\): expected rank 0, or 'all' or 'local_rank_0'"):
        orchestrator.attach(Counter(3))
    with pytest.raises(SpecError, match=r"orchestrator\.send\(Counter\): expected something that can be pickled"):
        orchestrator.send(Counter(threading.Lock()))
    orchestrator.run(1)
    with pytest.raises(SpecError, match=r"orchestrator\.send\(rank='all'\)"):
        orchestrator.send(Counter())


@pytest.mark.parametrize("of", ["start", "run"])
def test_a_time_limit_ends_training_with_a_checkpoint_and_may_count_earlier_starts(tmp_path: Path, of: Any) -> None:
    ended = []
    for _ in range(2):
        orchestrator, now = make(tmp_path), [0.0]
        orchestrator.attach(Checkpoint(every=10**6))
        orchestrator.attach(TimeLimit(4, of=of, clock=lambda now=now: now[0]))  # type: ignore[arg-type]
        orchestrator.on(Events.ITERATION_COMPLETED)(lambda run, now=now: now.append(now.pop() + 1))  # a second each
        result = orchestrator.run(10**6)
        assert (result.status, result.reason) == ("terminated", "the time limit of 4 s is over")
        assert f"/step-{result.state.iteration:08d}" in str(result.checkpoint)
        ended.append(result.state.iteration)
    assert ended[0] >= 4
    assert (ended[1] - ended[0] >= 4) == (of == "start")
