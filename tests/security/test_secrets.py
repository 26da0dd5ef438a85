"""S6: secrets are given by reference, and stand nowhere: not in a run's folder, nor in errors, nor in what is shown."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.journal import Journal
from orchestrator.specfile import parse_spec
from workers.errors import ProgramError
from workers.locations import storage_at
from workers.logs import LineLog, LogPlace, Tee
from workers.parcels import Failure
from workers.secrets import resolve

TOP = Path(__file__).parents[2]
CANARY = "canary-5f1e0c"
JOB = """\
run: careful
program: rf_secret_program:build
handlers: rf_secret_program:attach
config:
  api_key: {secret: {env: MY_SERVICE}}
  other: {secret: {file: FILE}}
train: {max_epochs: 2}
workers: 0
checkpoint: {every: 1}
storage: runs
"""
PROGRAM = """\
import sys
import torch
from workers import Engine, Program, Worker, Events

def build(worker: Worker) -> Program:
    key = worker.config["api_key"]
    assert key.startswith("canary") and worker.config["other"].startswith("canary")
    print("the key is", key, worker.config["other"])
    print("url s3://me:" + key + "@host/bucket", file=sys.stderr)
    model = worker.prepare(torch.nn.Linear(1, 1))
    def step(engine, batch):
        if engine.state.epoch == 2:
            raise ValueError("the service refused " + key)
        return {}
    data = [torch.zeros(1)] * 3
    return Program(engines={"trainer": Engine(step)}, data={"trainer": data}, state={"model": model})

def attach(orchestrator):
    @orchestrator.on(Events.EPOCH_COMPLETED)
    def tell(run):
        print("token", __import__("os").environ["ANOTHER_TOKEN"])
"""


def config(text: str) -> str:
    return f"run: x\nprogram: a:b\ntrain: {{max_epochs: 1}}\nworkers: 1\nconfig: {text}\n"


def test_a_canary_is_found_nowhere(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{CANARY}-file\n")
    (tmp_path / "job.yaml").write_text(JOB.replace("FILE", str(tmp_path / "key")))
    (tmp_path / "rf_secret_program.py").write_text(PROGRAM)
    secrets = {"MY_SERVICE": f"{CANARY}-reference", "ANOTHER_TOKEN": f"{CANARY}-variable"}
    environment = {**os.environ, **secrets, "PYTHONPATH": str(TOP)}
    command = [sys.executable, "-m", "orchestrator", "run", "job.yaml"]
    end = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert end.returncode == 1, end.stderr
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    found = {str(path.relative_to(tmp_path)) for path in files if CANARY.encode() in path.read_bytes()}
    assert found == set()
    assert b"the key is *** ***" in b"".join(path.read_bytes() for path in files)  # it was printed, and logged
    assert CANARY not in end.stderr.partition("error: ")[2]  # what we say of the user's exception
    assert "the service refused ***" in end.stderr
    for command in (["show", "careful"], ["show", "careful", "--json"], ["logs", "careful"], ["status", "careful"]):
        shown = subprocess.run(
            [sys.executable, "-m", "orchestrator", *command],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert shown.returncode == 0, shown.stderr
        assert CANARY not in shown.stdout


@pytest.mark.parametrize(
    "text",
    [
        "{api_key: hunter22}",
        "{wandb: {token: abc}}",
        "{db: [{password: x}]}",
        "{WANDB_API_KEY: abc}",
        "{a: {secret: x}}",
    ],
)
def test_a_secret_itself_is_refused_with_the_mend(text: str) -> None:
    with pytest.raises(SpecError, match=r"secret.*env: "):
        parse_spec(config(text))


@pytest.mark.parametrize(
    "text",
    [
        "{api_key: {secret: {env: X}}}",
        "{token: {secret: {file: /x}}}",
        "{tokens_seen: 5}",
        "{token: null}",
        "{keys: [a]}",
    ],
)
def test_references_and_other_words_are_accepted(text: str) -> None:
    parse_spec(config(text))


def test_a_journal_masks_whatever_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", CANARY)
    journal = Journal(storage_at(tmp_path))
    journal.start()
    journal.write("WORKER_LOST", text=f"refused {CANARY}", more={"deep": [f"s3://me:{CANARY}@host"]})
    journal.close()
    content = (tmp_path / "journal.jsonl").read_text()
    assert CANARY not in content
    assert content.count("***") == 2


def test_what_a_rank_raises_leaves_it_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", CANARY)
    failure = Failure.of(ValueError(f"refused {CANARY}"))
    assert failure.text == "refused ***"
    assert CANARY not in failure.traceback


def test_a_refused_secret_is_not_repeated() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(config("{api_key: hunter22}"))
    assert "hunter22" not in str(caught.value)


def test_a_secret_that_is_not_there_is_named_not_told(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match=r"config\.a\.token: expected a secret by env, received no variable NOT_SET"):
        resolve({"a": {"token": {"secret": {"env": "NOT_SET"}}}})
    with pytest.raises(ProgramError, match=r"config\.k\[0\]: expected a secret by file, .* No such file"):
        resolve({"k": [{"secret": {"file": str(tmp_path / "none")}}]})


def test_a_secret_too_short_to_be_masked_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PIN", "90210")
    with pytest.raises(
        ProgramError, match=r"config\.pin: expected a secret of 6 characters or more, .*MY_PIN"
    ) as caught:
        resolve({"pin": {"secret": {"env": "MY_PIN"}}})
    assert "90210" not in str(caught.value)


LINES = "of-the-first-line", 'the "second" line'


def test_a_key_of_several_lines_is_found_nowhere_in_a_log(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("\n".join(LINES) + "\n")
    config = resolve({"key": {"secret": {"file": str(tmp_path / "key.pem")}}})
    log = LineLog(LogPlace(home=str(tmp_path)), "driver", "driver")
    print(f"the key is {config['key']}\n{config!r}\n{json.dumps(config)}", file=Tee(None, "out", log))
    log.close()
    written = (tmp_path / "logs" / "driver.log").read_text()
    assert [line for line in LINES if line in written or json.dumps(line)[1:-1] in written] == []
    assert len(written.splitlines()) == 4
    failure = Failure.of(ValueError(f"cannot log in with {config!r}"))
    assert failure.text == "cannot log in with {'key': '***'}"


def test_what_is_no_reference_stays_as_it_is() -> None:
    plain = {"lr": 0.1, "layers": [1, {"secret": 1}], "secret": {"env": "X", "file": "Y"}}
    assert resolve(plain) == plain
