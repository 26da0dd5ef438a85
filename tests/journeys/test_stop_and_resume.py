"""A run on two ranks that is looked at, stopped and resumed by commands from elsewhere, through its folder alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.journal import read_journal
from tests.waiting import wait_until

JOB = """\
run: endless
program: tests.journeys.programs:linear
handlers: handlers:attach
train: {max_epochs: 1000000}
workers: 2
checkpoint: {every: 1000000, keep: 1}
storage: runs
logs: json
"""
HANDLERS = """\
import pathlib
from workers import Events

def attach(orchestrator):
    @orchestrator.on(Events.EPOCH_COMPLETED(before=4), rank="all")
    def same(engine):
        print("the same on all ranks")

    @orchestrator.on(Events.EPOCH_COMPLETED(once=4))
    def tell():
        pathlib.Path("fourth-epoch").touch()
"""


def rankfire(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`rankfire run` on a job that never ends, after its fourth epoch."""
    (tmp_path / "handlers.py").write_text(HANDLERS)
    (tmp_path / "job.yaml").write_text(JOB)
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "run", "job.yaml"], cwd=tmp_path, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        wait_until(lambda: (tmp_path / "fourth-epoch").exists() or process.poll() is not None, 90, "the fourth epoch")
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def states(folder: Path) -> list[Any]:
    return [run["state"] for run in json.loads(rankfire(folder, "list", "--json").stdout)]


def test_a_run_is_listed_read_stopped_and_resumed_from_elsewhere(driver: subprocess.Popen[str], tmp_path: Path) -> None:
    assert states(tmp_path) == ["running"]

    for rank in (0, 1):  # what Ray shows once, with "[repeated 2x across cluster]"
        lines = rankfire(tmp_path, "logs", "endless", "--rank", str(rank)).stdout.splitlines()
        assert [line.partition(" ")[2] for line in lines] == [f"rank {rank}  | the same on all ranks"] * 3

    stopped = rankfire(tmp_path, "stop", "endless")
    assert stopped.returncode == 0, stopped.stderr
    assert "has ended: interrupted" in stopped.stdout
    _, told = driver.communicate(timeout=60)
    assert (driver.returncode, "asked to stop: stopping at the next iteration" in told) == (130, True)
    events = list(read_journal(tmp_path / "runs" / "endless" / "journal.jsonl"))
    assert [event["event"] for event in events][-2:] == ["CHECKPOINT_COMMITTED", "RUN_INTERRUPTED"]
    assert states(tmp_path) == ["interrupted"]
    assert "nothing to stop; rankfire resume endless" in rankfire(tmp_path, "stop", "endless").stdout

    epoch = events[-1]["epoch"] + 1
    shorter = ["--set", f"train.max_epochs={epoch}", "--set", "workers=0"]
    resumed = rankfire(tmp_path, "resume", "endless", *shorter, "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout[resumed.stdout.index("{\n") :])["epoch"] == epoch
    assert states(tmp_path) == ["completed"]
    driver_log = rankfire(tmp_path, "logs", "endless", "--driver").stdout
    assert "goes on from checkpoint" in driver_log
