"""The rankfire command: what it prints, how it exits, and what it does not import."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NoReturn

import pytest

from orchestrator.cli.main import main, rankfire
from orchestrator.errors import NotFiniteError, RunInterrupted, SystemFailure, TrainingError
from orchestrator.spec import JobSpec

JOB = """\
run: digits
program: rf_cli_program:build
train: {max_epochs: 5}
workers: 2
evaluate: {}
"""


@dataclass
class FakeOrchestrator:
    """Stands in for the real one: notes how it was called, then returns a result or raises."""

    error: Exception | None = None
    failure: Exception | None = None
    called: dict[str, object] = field(default_factory=dict)
    spec: JobSpec | None = None

    def from_spec(self, spec: JobSpec, *, roots: list[str]) -> "FakeOrchestrator":
        self.spec = spec
        self.called["roots"] = roots
        return self

    def run(self, *, resume: str, fresh: bool, strict: bool) -> SimpleNamespace:
        self.called |= {"resume": resume, "fresh": fresh, "strict": strict}
        if self.error is not None:
            raise self.error
        return SimpleNamespace(
            reason="",
            status="completed",
            state=SimpleNamespace(epoch=5, iteration=145),
            metrics={"validation/accuracy": 0.9812345, "loss": 0.25},
            checkpoint="runs/digits/checkpoints/step-00000145",
            failure=self.failure,
        )


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "rf_cli_program.py").write_text("def build(worker): ...\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return "../job.yaml"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeOrchestrator:
    fake = FakeOrchestrator()
    module = ModuleType("orchestrator.orchestrator")
    module.__dict__["Orchestrator"] = fake
    monkeypatch.setitem(sys.modules, "orchestrator.orchestrator", module)
    return fake


def code_of(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


def test_run_hands_the_spec_over_and_prints_a_summary(
    job: str, fake: FakeOrchestrator, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert code_of("run", job, "--set", "train.max_epochs=3", "--workers", "1", "--resume", "never") == 0
    assert fake.spec is not None
    assert (fake.spec.train.max_epochs, fake.spec.workers.count) == (3, 1)
    assert fake.called == {
        "roots": [str(tmp_path / "elsewhere"), str(tmp_path)], "resume": "never", "fresh": False, "strict": False,
    }  # fmt: skip
    shown = capsys.readouterr().out
    rows = {cells[1].strip(): cells[2].strip() for line in shown.splitlines() if len(cells := line.split("│")) == 4}
    assert "run digits" in shown
    assert rows == {
        "status": "completed",
        "epoch": "5",
        "iteration": "145",
        "loss": "0.25",
        "validation/accuracy": "0.981235",
        "checkpoint": "runs/digits/checkpoints/step-00000145",
    }


def test_run_hands_over_what_to_do_about_what_is_there(job: str, fake: FakeOrchestrator) -> None:
    assert code_of("run", job, "--fresh", "--strict") == 0
    assert (fake.called["fresh"], fake.called["strict"]) == (True, True)


def test_run_resumes_unless_told_otherwise(job: str, fake: FakeOrchestrator) -> None:
    assert code_of("run", job) == 0
    assert fake.called["resume"] == "auto"


def test_run_starts_anew_and_refuses_damage_if_told_to(job: str, fake: FakeOrchestrator) -> None:
    assert code_of("run", job, "--fresh", "--strict") == 0
    assert (fake.called["fresh"], fake.called["strict"]) == (True, True)


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (
            TrainingError("rank 1 raised ValueError: boom", ranks=[1], traceback="Traceback (user)\n"),
            1,
            "Traceback (user)\nerror: rank 1 raised ValueError: boom\n",
        ),
        (SystemFailure("the cluster is gone"), 3, "error: the cluster is gone\n"),
        (RunInterrupted("interrupted in epoch 3"), 130, "error: interrupted in epoch 3\n"),
    ],
)
def test_an_error_of_the_run_is_one_line_and_its_exit_code(
    error: Exception,
    code: int,
    shown: str,
    job: str,
    fake: FakeOrchestrator,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake.error = error
    assert code_of("run", job) == code
    assert capsys.readouterr().err == shown


def test_a_run_that_ended_because_its_numbers_were_not_finite_is_shown_and_has_the_code_of_a_failed_training(
    job: str, fake: FakeOrchestrator, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.failure = NotFiniteError.at(145, {1: "loss is nan"})
    assert code_of("run", job) == 1
    shown = capsys.readouterr()
    assert "step-00000145" in shown.out
    assert shown.err == (
        "error: iteration 145: expected finite numbers, received on rank 1: loss is nan; look at the data of that "
        "iteration, lower the learning rate, or clip gradients\n"
    )


def test_a_defect_of_ours_shows_its_traceback_and_is_no_user_error(
    job: str, fake: FakeOrchestrator, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.error = ZeroDivisionError("defect")
    assert code_of("run", job) == 3
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):")
    assert shown.endswith("ZeroDivisionError: defect\n")


def test_ctrl_c_before_the_run_exits_130(
    job: str, fake: FakeOrchestrator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(spec: JobSpec, *, roots: list[str]) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(fake, "from_spec", interrupt)
    assert code_of("run", job) == 130
    assert capsys.readouterr().err.endswith("error: interrupted\n")


@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_bad_job_file_exits_2_with_every_problem(
    command: str, job: str, fake: FakeOrchestrator, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["--set", "train={max_epoch: 1}", "--set", "program=rf_cli_program:biuld"]
    assert code_of(command, job, *sets) == 2
    assert capsys.readouterr() == (
        "",
        "error: --set train={max_epoch: 1}: train.max_epoch: unknown key, did you mean max_epochs?\n"
        "error: --set program=rf_cli_program:biuld: expected a function of the module rf_cli_program, "
        "received no 'biuld' there; did you mean build?\n",
    )
    assert fake.called == {}


def test_a_missing_job_file_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("run", "no.yaml") == 2
    assert (
        capsys.readouterr().err
        == "error: no.yaml: expected a YAML job file, received no such file; give the path of one\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        *[
            ["bogus"],
            ["checkpoints"],
            ["export", "digits"],
            ["run"],
            ["run", "job.yaml", "--workers", "-1"],
            ["run", "job.yaml", "--workers", "two"],
        ],
        *[["run", "job.yaml", "--resume", "maybe"], ["validate"], ["validate", "job.yaml", "--schema"]],
    ],
)
def test_a_wrong_command_line_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(*arguments) == 2
    assert capsys.readouterr().err.startswith("Usage: rankfire")


@pytest.mark.parametrize(
    ("sets", "summary"),
    [
        ([], "run digits, 2 workers, 5 epochs, evaluate every 1"),
        (["checkpoint={}"], "run digits, 2 workers, 5 epochs, evaluate every 1, checkpoint every 1 epoch"),
        (
            ["checkpoint.every={seconds: 0.5}", "evaluate="],
            "run digits, 2 workers, 5 epochs, checkpoint every 0.5 seconds",
        ),
        (
            ["workers={count: 1, gpus: 0.5}", "train={max_iters: 9}", "checkpoint.every=2", "evaluate="],
            "run digits, 1 worker, 9 iterations, 0.5 gpus each, checkpoint every 2 epochs",
        ),
        (
            ["checkpoint.every={seconds: 90}", "evaluate="],
            "run digits, 2 workers, 5 epochs, checkpoint every 90 seconds",
        ),
    ],
)
def test_validate_says_in_one_line_what_a_job_asks_for(
    sets: list[str], summary: str, job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of("validate", job, *[word for override in sets for word in ("--set", override)]) == 0
    shown = capsys.readouterr()
    assert (shown.out.splitlines()[0], shown.err) == (f"../job.yaml: ok: {summary}", "")


def test_validate_says_what_it_can_not_know(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    best = "checkpoint={best: {metric: validation/acuracy}}"
    assert code_of("validate", job, "--set", best, "--set", "start_from=digits@best") == 0
    assert capsys.readouterr().out.splitlines()[1] == (
        "../job.yaml: not checked, as only the built program knows: evaluate.engine evaluator, "
        "checkpoint.best.metric validation/acuracy, start_from.state model"
    )
    assert code_of("validate", job, "--set", "evaluate=") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_validate_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("validate", "--schema") == 0
    assert json.loads(capsys.readouterr().out) == JobSpec.model_json_schema()


def test_version_names_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("version") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "rankfire",
        "python",
        "torch",
        "ray",
    ]


def test_help_has_examples_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("--help") == 0
    shown = capsys.readouterr().out
    assert "rankfire run job.yaml --set train.max_epochs=3 --workers 2\n" in shown
    codes = [line.split()[0] for line in shown.partition("Exit codes:\n")[2].splitlines()]
    assert codes == ["0", "1", "2", "3", "130"]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["export", "--help"], ["validate", "../job.yaml"], ["validate", "--schema"], ["version"]]
)
def test_what_trains_nothing_imports_neither_torch_nor_ray(arguments: list[str], job: str) -> None:
    code = """
import sys
from orchestrator.cli.main import main, rankfire
try:
    main(sys.argv[1:])
except SystemExit as end:
    print(sorted({"torch", "ray", "numpy"} & set(sys.modules)), end.code, file=sys.stderr)
"""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}){code}"
    assert python(code, *arguments).stderr == "[] 0\n"


def test_shells_complete_commands() -> None:
    environment = {**os.environ, "_RANKFIRE_COMPLETE": "bash_complete", "COMP_WORDS": "rankfire st", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "orchestrator"]
    root = Path(__file__).parents[2]
    end = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, timeout=60)
    assert end.stdout.split() == ["plain,status", "plain,stop"]


def test_every_command_has_help_with_examples_and_json() -> None:
    for name, command in rankfire.commands.items():
        if command.hidden:
            continue
        options = {word for parameter in command.params for word in parameter.opts}
        assert "--json" in options, name
        assert name == "version" or "Examples:" in (command.epilog or ""), name


def test_python_m_orchestrator_is_the_same_command() -> None:
    root = Path(__file__).parents[2]
    end = subprocess.run(
        [sys.executable, "-m", "orchestrator", "validate", "no.yaml"],
        capture_output=True, text=True, cwd=root, timeout=60,
    )  # fmt: skip
    assert (end.returncode, end.stdout) == (2, "")
    assert end.stderr == "error: no.yaml: expected a YAML job file, received no such file; give the path of one\n"


def test_a_reader_that_goes_away_ends_the_command_quietly() -> None:
    root = Path(__file__).parents[2]
    shell = f"{sys.executable} -m orchestrator validate --schema | exit 0"
    end = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=root, timeout=60)
    assert end.stderr == ""


def test_the_face_has_every_name_it_lists_and_no_other() -> None:
    import orchestrator

    assert sorted(orchestrator.__all__) == orchestrator.__all__
    with pytest.raises(AttributeError, match="module 'orchestrator' has no attribute 'nothing'"):
        _ = orchestrator.nothing
