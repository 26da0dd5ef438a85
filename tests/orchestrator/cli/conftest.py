"""Runs that have saved, and the command as it is typed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.cli.main import main
from orchestrator.handlers.checkpoint import Best, Checkpoint
from tests.orchestrator.linear import make, trained
from workers import Events, Worker

Rankfire = Callable[..., tuple[int | str | None, str, str]]


def logits(worker: Worker) -> Any:
    """What the model says to three samples, as the program trained it."""
    assert worker.program is not None
    model: Any = worker.program.state["model"]
    with torch.no_grad():
        return model(torch.arange(9.0).view(3, 3)).tolist()


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`linear`: three epochs of three iterations, each saved; `empty`: one epoch, nothing saved."""
    storage = tmp_path_factory.mktemp("trained") / "runs"
    run = make(storage)
    run.attach(Checkpoint(every=1, keep=3, best=Best("loss", "min")))
    run.listen(Events.COMPLETED, lambda run: (storage / "logits.json").write_text(json.dumps(run.call(logits, rank=0))))
    trained(run)
    trained(make(storage, run="empty"), max_epochs=1)
    return storage


@pytest.fixture
def runs(trained_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to damage, as `runs` in the current folder."""
    shutil.copytree(trained_runs, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.fixture
def rankfire(capsys: pytest.CaptureFixture[str]) -> Rankfire:
    """Run the command; gives its exit code, and what it said on both streams."""

    def run(*arguments: str) -> tuple[int | str | None, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        said = capsys.readouterr()
        return caught.value.code, said.out, said.err

    return run
