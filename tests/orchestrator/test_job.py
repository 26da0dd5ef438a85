"""A job file from end to end in one process: `Orchestrator.from_spec`, and the command as users type it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import Orchestrator, SpecError, TrainingError
from orchestrator.specfile import load_spec
from tests.orchestrator.linear import journal
from tests.waiting import wait_until
from workers import Events

JOB = """\
run: job
program: rf_job_program:build
handlers: rf_job_handlers:attach
config: {fail: null}
train: {max_epochs: 2}
workers: 0
evaluate: {engine: evaluator, every: 1}
checkpoint: {every: 1, keep: 1, best: {metric: validation/loss, mode: min}}
storage: STORAGE
"""
PROGRAM = "from tests.orchestrator.linear import build\n"
HANDLERS = """\
from pathlib import Path

from workers import Events


def attach(orchestrator):
    @orchestrator.on(Events.EPOCH_COMPLETED)
    def tell(run):
        print(f"epoch {run.state.epoch} of {run.settings.run}, {sorted(run.metrics)}")

    if orchestrator.settings.config.get("ready"):
        @orchestrator.on(Events.ITERATION_COMPLETED(once=4))
        def tell_the_test(run):
            Path(run.settings.config["ready"]).touch()
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "rf_job_program.py").write_text(PROGRAM)
    (tmp_path / "rf_job_handlers.py").write_text(HANDLERS)
    (tmp_path / "job.yaml").write_text(JOB.replace("STORAGE", str(tmp_path / "runs")))
    return tmp_path / "job.yaml"


def command(job: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator", "run", str(job), "--workers", "0", *options]


def rankfire(job: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(job, *options), capture_output=True, text=True, timeout=100)


def test_a_job_file_trains_evaluates_saves_and_attaches_its_handlers(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = Orchestrator.from_spec(job).run()
    assert (result.status, result.state.epoch) == ("completed", 2)
    assert capsys.readouterr().out.splitlines() == [
        f"epoch {epoch} of job, ['loss', 'validation/loss']" for epoch in (1, 2)
    ]
    lines = [line["event"] for line in journal(job.parent / "runs", "job")]
    assert lines.count("EVALUATION_COMPLETED") == lines.count("CHECKPOINT_COMMITTED") == 2


def test_the_run_keeps_the_job_file_that_it_ran(job: Path) -> None:
    Orchestrator.from_spec(job).run(max_epochs=1)
    kept = job.parent / "runs" / "job" / "spec.yaml"
    assert load_spec(str(kept)) == load_spec(str(job))


def test_arguments_win_over_the_job_file(job: Path) -> None:
    assert Orchestrator.from_spec(job).run(max_epochs=1, epoch_length=2).state.iteration == 2
    assert Orchestrator.from_spec(str(job)).run(max_iters=5).state.iteration == 5


def test_a_spec_that_was_read_already_is_taken_as_it_is(job: Path) -> None:
    spec = load_spec(str(job), sets=["run=other", "evaluate=null", "checkpoint=null", "handlers=null"])
    result = Orchestrator.from_spec(spec, roots=[str(job.parent)]).run()
    assert (set(result.metrics), result.checkpoint) == ({"loss"}, None)


def test_handlers_that_do_not_exist_are_told(job: Path) -> None:
    text = job.read_text().replace("rf_job_handlers:attach", "rf_job_handlers:atach")
    job.write_text(text)
    with pytest.raises(SpecError, match=r"rf_job_handlers.*atach.*did you mean attach\?"):
        Orchestrator.from_spec(job)


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        ("raise KeyError('curve')", TrainingError, "handlers rf_job_handlers:attach raised KeyError: 'curve'"),
        ("import sys; sys.exit(0)", TrainingError, "handlers rf_job_handlers:attach raised SystemExit: 0"),
        ("orchestrator.attach(7)", SpecError, "orchestrator.attach: expected an object with attach(orchestrator)"),
    ],
)
def test_handlers_that_raise_while_they_are_attached_are_told(
    job: Path, body: str, kind: type[Exception], text: str
) -> None:
    name = f"rf_job_handlers_{sum(map(ord, body))}"
    (job.parent / f"{name}.py").write_text(f"def attach(orchestrator):\n    {body}\n")
    job.write_text(job.read_text().replace("rf_job_handlers", name))
    with pytest.raises(kind) as caught:
        Orchestrator.from_spec(job)
    assert str(caught.value).startswith(text.replace("rf_job_handlers", name))


def test_the_command_runs_a_job_and_prints_a_summary(job: Path) -> None:
    ended = rankfire(job)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[:2] == [f"epoch {epoch} of job, ['loss', 'validation/loss']" for epoch in (1, 2)]
    first, *epochs = ended.stderr.splitlines()
    assert first == f"rankfire: run 'job': 1 rank, in this process; what it keeps goes to {job.parent / 'runs' / 'job'}"
    assert [line.split("  ")[:2] for line in epochs] == [
        ["epoch 1/2", "iteration 3"],
        ["epoch 2/2", "iteration 6"],
    ]
    assert "step-00000006" in ended.stdout


def test_a_users_error_ends_the_command_with_1_and_its_traceback_once(job: Path) -> None:
    ended = rankfire(job, "--set", "config.fail=step")
    assert ended.returncode == 1
    assert ended.stderr.count("Traceback (most recent call last)") == 1
    assert ended.stderr.count('raise ValueError("wrong shape")') == 1
    assert re.fullmatch(
        r"error: rank 0 raised ValueError: wrong shape \(linear.py:\d+\)", ended.stderr.splitlines()[-1]
    )


def test_a_refusal_of_what_a_program_is_ends_the_command_with_one_line(job: Path) -> None:
    ended = rankfire(job, "--set", "program=builtins:id")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[1:] == [
        "error: rank 0 raised ProgramError: builtins:id(worker): expected it to return a Program, received int; end it "
        "with `return Program(engines=…, data=…, state=…)`"
    ]
    assert not (job.parent / "runs").exists() or list((job.parent / "runs").iterdir()) == []


def test_a_metric_that_does_not_exist_ends_the_command_with_2(job: Path) -> None:
    ended = rankfire(job, "--set", "checkpoint.best.metric=validation/los")
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == (
        "error: checkpoint.best.metric: expected the name of a reduced metric, received 'validation/los'; "
        "did you mean 'validation/loss'?"
    )
    assert "Traceback" not in ended.stderr


def test_ctrl_c_ends_the_command_with_130_after_a_checkpoint(job: Path) -> None:
    ready = job.parent / "ready"
    options = ("--set", f"config.ready={ready}", "--set", "train.max_epochs=100000")
    process = subprocess.Popen(command(job, *options), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(ready.exists, timeout=60, what="the first iteration")
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "rankfire: stopping at the next iteration; press Ctrl-C again to stop now" in told
    assert told.splitlines()[-1].startswith("error: run 'job' was interrupted after iteration ")
    assert "Traceback" not in told
    reached = journal(job.parent / "runs", "job")[-1]["iteration"]
    assert (job.parent / "runs" / "job" / "checkpoints" / f"step-{reached:08d}").is_dir()


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (
            "evaluate.engine=evaluater",
            "evaluate.engine: expected an engine of the program ('trainer', 'evaluator'), received 'evaluater'; did "
            "you mean 'evaluator'?",
        ),
        (
            "checkpoint.best.metric=validation/los",
            "checkpoint.best.metric: expected the name of a reduced metric, received 'validation/los'; did you mean "
            "'validation/loss'?",
        ),
    ],
)
def test_a_wrong_name_is_told_before_anything_is_trained(job: Path, override: str, text: str) -> None:
    spec = load_spec(str(job), sets=[override])
    with pytest.raises(SpecError) as caught:
        Orchestrator.from_spec(spec, roots=[str(job.parent)]).run()
    assert str(caught.value) == text
    assert list((job.parent / "runs").iterdir()) == []


def test_a_wrong_name_in_a_run_that_exists_is_in_its_record(job: Path) -> None:
    Orchestrator.from_spec(str(job)).run(max_epochs=1)
    spec = load_spec(str(job), sets=["evaluate.engine=evaluater"])
    with pytest.raises(SpecError, match=r"^evaluate\.engine: "):
        Orchestrator.from_spec(spec, roots=[str(job.parent)]).run()
    assert [line["event"] for line in journal(job.parent / "runs", "job")][-2:] == ["WORKER_BUILT", "RUN_FAILED"]


@pytest.mark.parametrize("metric", ["validation/score", "validation/loss", "loss", "validation/loss/part", "train/los"])
def test_a_name_that_may_yet_come_is_not_refused_before_training(job: Path, metric: str) -> None:
    spec = load_spec(str(job), sets=[f"checkpoint.best.metric={metric}"])
    orchestrator = Orchestrator.from_spec(spec, roots=[str(job.parent)])
    orchestrator.on(Events.EPOCH_COMPLETED)(lambda run: run.metrics.__setitem__(metric, 1.0))
    assert orchestrator.run(max_epochs=1).status == "completed"
