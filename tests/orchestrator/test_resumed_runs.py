"""Where a run begins: what goes on, what is refused, what is set aside, what is taken from another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from orchestrator import Best, Checkpoint, CheckpointError, Evaluate, Orchestrator, SpecError, TrainingError
from orchestrator.checkpoints.references import find
from orchestrator.resume import changed_versions
from tests.orchestrator import linear
from tests.orchestrator.linear import journal, make, parameters, trained
from workers import Events, Program, Worker, failpoints
from workers.locations import storage_at


def run(storage: Path, epochs: int = 2, name: str = "linear", **given: Any) -> list[list[float]]:
    orchestrator = make(storage, name)
    orchestrator.attach(Checkpoint(every={"iterations": 2}, keep=2))
    return trained(orchestrator, epochs, **given)


def names(storage: Path, name: str = "linear") -> list[str]:
    return [known.name for known in make(storage, name).registry.committed()]


def spoil(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def events(storage: Path, name: str = "linear") -> list[str]:
    return [line["event"] for line in journal(storage, name)]


def test_a_run_goes_on_from_the_middle_of_an_epoch_and_says_from_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(tmp_path / "calm")
    orchestrator = make(tmp_path)
    orchestrator.attach(Checkpoint(every={"iterations": 2}))
    orchestrator.on(Events.ITERATION_COMPLETED(once=5), blocking=True)(lambda run: [].pop())
    with pytest.raises(Exception, match="pop from empty list"):
        orchestrator.run(max_epochs=2)
    assert run(tmp_path) == whole
    assert "run 'linear' goes on from checkpoint step-00000004, epoch 2" in capsys.readouterr().err
    assert events(tmp_path).count("RESUMED") == 1


def test_what_came_after_the_last_save_is_saved_at_the_end(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.attach(Checkpoint(every={"iterations": 4}))
    orchestrator.run(max_epochs=2)
    assert names(tmp_path) == ["step-00000004", "step-00000006"]


def test_a_last_save_that_fails_is_made_again_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    orchestrator = make(tmp_path)
    orchestrator.attach(Checkpoint(on_save_error="continue"))
    failpoints.arm("commit.received=enospc:1")
    try:
        result = orchestrator.run(max_epochs=1)
    finally:
        failpoints.arm("")
    assert "No space left on device; training goes on" in capsys.readouterr().err
    assert result.checkpoint == str(tmp_path / "linear" / "checkpoints" / "step-00000003")


def test_a_save_that_was_waited_for_and_failed_has_no_path(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.attach(Checkpoint(every=9, on_save_error="continue"))
    urls: list[str | None] = []
    for _ in range(2):
        orchestrator.on(Events.EPOCH_COMPLETED)(lambda run: urls.append(run.checkpoint(wait=True)))
    failpoints.arm("commit.received=enospc:1")
    try:
        orchestrator.run(max_epochs=1)
    finally:
        failpoints.arm("")
    assert urls == [None, str(tmp_path / "linear" / "checkpoints" / "step-00000003")]


def test_once_only_events_do_not_fire_again(tmp_path: Path) -> None:
    heard: list[str] = []
    for epochs in (1, 2):
        orchestrator = make(tmp_path)
        orchestrator.attach(Checkpoint())
        for event in (Events.STARTED, Events.RESUMED, Events.EPOCH_COMPLETED(once=1)):
            orchestrator.on(event, repr(event))(lambda run, name: heard.append(name))
        orchestrator.run(max_epochs=epochs)
    assert heard == ["STARTED", "EPOCH_COMPLETED(once=1)", "RESUMED"]


def test_never_refuses_a_run_that_exists_and_leaves_it_alone(tmp_path: Path) -> None:
    run(tmp_path)
    before = sorted(path for path in (tmp_path / "linear").rglob("*") if "lease" not in path.parts)
    with pytest.raises(SpecError) as caught:
        make(tmp_path).run(max_epochs=3, resume="never")
    assert str(caught.value) == (
        f"run 'linear': expected a run that does not exist yet, since resume is never, received one in "
        f"{tmp_path}/linear; choose another run id, or start anew with --fresh, which moves the old one aside"
    )
    assert sorted(path for path in (tmp_path / "linear").rglob("*") if "lease" not in path.parts) == before


def test_fresh_moves_the_old_run_aside_and_starts_anew(tmp_path: Path) -> None:
    old = run(tmp_path)
    assert run(tmp_path, fresh=True, resume="never") == old
    assert names(tmp_path, "linear.old-1") == names(tmp_path) == ["step-00000004", "step-00000006"]
    assert events(tmp_path)[0] == events(tmp_path, "linear.old-1")[0] == "RUN_STARTED"
    run(tmp_path, fresh=True)
    assert names(tmp_path, "linear.old-2") == names(tmp_path)


def test_fresh_on_nothing_is_a_start(tmp_path: Path) -> None:
    run(tmp_path, fresh=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linear"]


def test_a_damaged_checkpoint_is_passed_over_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(tmp_path / "calm", epochs=3)
    run(tmp_path)
    spoil(tmp_path / "linear" / "checkpoints" / "step-00000006" / "data" / "__0_0.distcp")
    assert run(tmp_path, epochs=3) == whole
    told = capsys.readouterr().err
    assert "step-00000006: data/__0_0.distcp is not what was written: its sha256 differs; trying the one before" in told
    assert "goes on from checkpoint step-00000004" in told
    assert "CHECKPOINT_REFUSED" in events(tmp_path)


def test_the_one_saved_after_a_damaged_one_stays_and_verifies(tmp_path: Path) -> None:
    run(tmp_path)
    spoil(tmp_path / "linear" / "checkpoints" / "step-00000006" / "shared.pt")
    resumed = make(tmp_path)
    resumed.attach(Checkpoint(every={"iterations": 1}, keep=1))
    result = resumed.run(max_iters=5)
    assert names(tmp_path) == ["step-00000005"]
    assert result.checkpoint == str(tmp_path / "linear" / "checkpoints" / "step-00000005")
    found, refused = make(tmp_path).registry.newest_valid()
    assert found is not None
    assert (found.url, refused) == (result.checkpoint, [])


def test_strict_refuses_a_damaged_checkpoint(tmp_path: Path) -> None:
    run(tmp_path)
    spoil(tmp_path / "linear" / "checkpoints" / "step-00000006" / "shared.pt")
    with pytest.raises(CheckpointError, match=r"shared.pt is not what was written.*leave out --strict to go on from"):
        run(tmp_path, epochs=3, strict=True)


def test_nothing_valid_is_an_error_and_no_silent_start(tmp_path: Path) -> None:
    run(tmp_path)
    for name in names(tmp_path):
        spoil(tmp_path / "linear" / "checkpoints" / name / "manifest.json")
    with pytest.raises(CheckpointError, match="no other is left: restore the files, or start anew with --fresh"):
        run(tmp_path, epochs=3)


def test_other_data_is_refused_with_words(tmp_path: Path) -> None:
    run(tmp_path)
    other = make(tmp_path, seed=4)
    with pytest.raises(
        SpecError, match=r"^run: data: seed: expected 0, as in the checkpoint, received 4; give the same"
    ):
        other.run(max_epochs=3)


def test_a_new_run_starts_from_a_part_of_another_one(tmp_path: Path) -> None:
    run(tmp_path)
    old = make(tmp_path)
    old.on(Events.RESUMED)(lambda run: found.append(run.call(parameters, rank=0)))
    new = make(tmp_path, "fine")
    new.start_from("linear@latest", state=["model"])
    new.on(Events.STARTED)(lambda run: found.append(run.call(parameters, rank=0)))
    found: list[Any] = []
    new.run(max_epochs=1)
    old.run(max_epochs=3)
    assert found[0] == found[1]
    assert "STARTED_FROM" in events(tmp_path, "fine")


@pytest.mark.parametrize(
    ("reference", "state", "words"),
    [
        ("nobody@best", ["model"], "run 'nobody': expected a run in"),
        ("linear@best", ["model"], "a run that says which metric tells its best checkpoint"),
        (
            "linear@7",
            ["model"],
            "expected the step of a checkpoint, received '7'; there are step-00000004, step-00000006",
        ),
        (
            "linear",
            ["ema"],
            "start_from.state: expected entries that linear holds, received 'ema'; it holds 'model', 'opt",
        ),
    ],
)
def test_a_start_from_what_is_not_there_is_refused(
    tmp_path: Path, reference: str, state: list[str], words: str
) -> None:
    run(tmp_path)
    new = make(tmp_path, "fine")
    new.start_from(reference, state=state)
    with pytest.raises(SpecError) as caught:
        new.run(max_epochs=1)
    assert words in str(caught.value)


def test_a_damaged_start_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    spoil(tmp_path / "linear" / "checkpoints" / "step-00000006" / "index.json")
    new = make(tmp_path, "fine")
    new.start_from("linear@latest")
    with pytest.raises(CheckpointError, match=r"index.json is not what was written.*name another one in start_from"):
        new.run(max_epochs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["linear"]


def test_a_start_from_what_does_not_fit_is_refused_by_the_ranks_and_leaves_nothing(tmp_path: Path) -> None:
    run(tmp_path)
    new = Orchestrator(wider, workers=0, run="fine", storage=tmp_path)
    new.start_from("linear", state=["model"])
    with pytest.raises(TrainingError, match=r"(?s)size mismatch.*; give what is new in it an entry of its own"):
        new.run(max_epochs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["linear"]


def wider(worker: Worker) -> Program:
    """The same program, with another head."""
    program = linear.build(worker)
    program.state["model"] = worker.prepare(nn.Linear(3, 2))
    return program


def test_saves_by_the_clock_come_at_boundaries_and_training_goes_on(tmp_path: Path) -> None:
    now = [0.0]
    orchestrator = Orchestrator(linear.build, workers=0, run="linear", storage=tmp_path)
    orchestrator.attach(Checkpoint(every={"seconds": 10}, keep=9, clock=lambda: now[0]))
    orchestrator.on(Events.EPOCH_STARTED)(lambda run: now.__setitem__(0, now[0] + 11))
    tick = orchestrator._attached[0].tick
    orchestrator.on(Events.ITERATION_STARTED, blocking=True)(lambda run: tick(run))
    calm = trained(make(tmp_path / "calm"), 3)
    assert trained(orchestrator, 3) == calm
    assert names(tmp_path) == [f"step-{step:08d}" for step in (1, 4, 7, 9)]  # the last is that of the end


@pytest.mark.parametrize(
    ("then", "now", "words"),
    [
        ({"torch": "1"}, {"torch": "1", "ray": "2"}, None),
        ({"torch": "1", "ray": "2"}, {"torch": "2", "ray": "2"}, "torch 1 → 2"),
    ],
)
def test_changed_versions_are_told(then: dict[str, str], now: dict[str, str], words: str | None) -> None:
    assert changed_versions(then, now) == words


class Counting:
    """A handler for ranks that has a state."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, engine: Any) -> None:
        self.calls += 1
        engine.state.metrics["calls"] = self.calls

    def state_dict(self) -> dict[str, int]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


def test_a_handler_that_runs_on_ranks_keeps_its_state(tmp_path: Path) -> None:
    counted = []
    for epochs in (2, 3):
        orchestrator = make(tmp_path)
        orchestrator.attach(Checkpoint())
        orchestrator.on(Events.EPOCH_COMPLETED, rank="all")(Counting())
        counted.append(orchestrator.run(max_epochs=epochs).metrics["calls"])
    assert counted == [2, 3]


# ---------------------------------------------------------------- which is the best
def evaluated_run(storage: Path, every: int, epochs: int = 4) -> Orchestrator:
    orchestrator = make(storage)
    orchestrator.attach(Evaluate())
    best = Best("validation/loss", mode="min")
    orchestrator.attach(Checkpoint(every={"iterations": every}, keep=9, best=best))
    orchestrator.run(max_epochs=epochs)
    return orchestrator


def test_a_metric_belongs_to_the_iteration_at_which_it_was_measured(tmp_path: Path) -> None:
    committed = evaluated_run(tmp_path, every=2).registry.committed()
    measured = {known.manifest.iteration: "validation/loss" in known.manifest.metrics for known in committed}
    assert measured == {2: False, 3: True, 4: False, 6: True, 8: False, 9: True, 10: False, 12: True}


def test_a_save_due_at_an_epochs_last_iteration_holds_what_its_end_brought(tmp_path: Path) -> None:
    (last,) = [known for known in evaluated_run(tmp_path, every=3, epochs=1).registry.committed()]
    assert (last.manifest.iteration, "validation/loss" in last.manifest.metrics) == (3, True)


def test_no_checkpoint_where_the_best_ones_metric_was_measured_is_told_so(tmp_path: Path) -> None:
    run(tmp_path / "plain")
    orchestrator = make(tmp_path)
    orchestrator.attach(Checkpoint(every={"iterations": 2}, best=Best("validation/loss", mode="min")))
    orchestrator.run(max_epochs=1)
    with pytest.raises(SpecError, match="expected a checkpoint that was made where validation/loss was measured"):
        find("linear@best", storage_at(tmp_path))


def test_the_same_iteration_is_not_saved_again_by_the_clock(tmp_path: Path) -> None:
    now = [0.0]
    orchestrator = make(tmp_path)
    orchestrator.attach(Checkpoint(every={"seconds": 1}, keep=9, clock=lambda: now[0]))
    tick = orchestrator._attached[0].tick

    @orchestrator.on(Events.EPOCH_STARTED)
    def time_goes_by(run: Any) -> None:
        for _ in range(3):
            now[0] += 2
            tick(run)

    orchestrator.run(max_epochs=2)
    assert len(names(tmp_path)) == len({name[:13] for name in names(tmp_path)})
