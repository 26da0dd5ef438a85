"""The digits job, its file unchanged, on a real Ray cluster with a token and under a real Slurm: stopped, and resumed.

`make test-deploy` runs these; they take minutes, and Slurm must be installed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.journal import read_journal
from tests.deploy.slurm import NEEDED, slurm
from tests.ray_head import Head, ray_head
from tests.waiting import wait_until

TOP = Path(__file__).parents[2]
JOB = "examples/digits/job.yaml"
LONG = 400  # seconds until something has happened, on a machine that is busy
pytestmark = [
    pytest.mark.skipif("RANKFIRE_DEPLOY" not in os.environ, reason="takes minutes: make test-deploy"),
    pytest.mark.timeout(900),
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of its own with the digits job, as it is."""
    shutil.copytree(TOP / "examples" / "digits", tmp_path / "examples" / "digits")
    (tmp_path / "examples" / "__init__.py").touch()
    return tmp_path


def rankfire(project: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator", *arguments]
    environment = {**environment, "PYTHONPATH": str(TOP)}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=LONG)


def status(project: Path) -> dict[str, Any]:
    end = rankfire(project, dict(os.environ), "status", "digits", "--json")
    return json.loads(end.stdout) if end.returncode == 0 else {"state": "new", "epoch": 0}


def events(project: Path) -> list[dict[str, Any]]:
    return list(read_journal(project / "runs" / "digits" / "journal.jsonl"))


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as head:
        yield head


def test_run_here_it_is_stopped_from_elsewhere_and_resumed(project: Path) -> None:
    command = [sys.executable, "-m", "orchestrator", "run", JOB, "--set", "train.max_epochs=1000"]
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    with (
        (project / "told").open("w") as told,
        subprocess.Popen(command, cwd=project, env=environment, stdout=told, stderr=told) as driver,
    ):
        try:
            wait_until(
                lambda: status(project)["epoch"] >= 2 or driver.poll() is not None, LONG, "the second epoch", 1.0
            )
            stopped = rankfire(project, environment, "stop", "digits")
            assert "has ended: interrupted" in stopped.stdout, stopped.stderr + (project / "told").read_text()
            assert driver.wait(LONG) == 130
        finally:
            driver.kill()
    assert events(project)[-1]["event"] == "RUN_INTERRUPTED"
    epochs = f"train.max_epochs={status(project)['epoch'] + 2}"
    resumed = rankfire(project, environment, "resume", "digits", "--set", epochs)
    assert (resumed.returncode, "goes on from checkpoint" in resumed.stderr) == (0, True), resumed.stderr
    assert status(project)["state"] == "completed"


def test_submitted_to_a_ray_cluster_with_a_token_it_is_one_run_that_stops_and_resumes(
    head: Head, project: Path
) -> None:
    there, long = ["--address", head.url], ["--set", "train.max_epochs=1000"]
    began = time.monotonic()
    first = rankfire(project, head.environment, "submit", JOB, *long, *there, "--json")
    assert first.returncode == 0, first.stderr
    print(f"accepted {time.monotonic() - began:.1f} s after the command began")
    again = rankfire(project, head.environment, "submit", JOB, *long, *there, "--json")
    assert [json.loads(end.stdout)["new"] for end in (first, again)] == [True, False]
    taken = rankfire(project, head.environment, "submit", JOB, "--set", "seed=1", *there)
    assert (taken.returncode, "choose another run id" in taken.stderr) == (2, True)

    wait_until(lambda: status(project)["epoch"] >= 2, LONG, "the second epoch", 1.0)
    assert "epoch 1/1000" in rankfire(project, head.environment, "logs", "digits", *there).stdout
    stopped = rankfire(project, head.environment, "stop", "digits", *there)
    assert "run digits has ended: job rankfire-digits: STOPPED" in stopped.stdout, stopped.stderr
    assert status(project)["state"] == "interrupted"
    told = events(project)
    saved = [event["iteration"] for event in told if event["event"] == "CHECKPOINT_COMMITTED"]
    assert (told[-1]["event"], saved[-1]) == ("RUN_INTERRUPTED", told[-1]["iteration"])
    assert "nothing to stop" in rankfire(project, head.environment, "stop", "digits", *there).stdout

    epochs = ["--set", f"train.max_epochs={status(project)['epoch'] + 2}"]
    resumed = rankfire(project, head.environment, "submit", JOB, *epochs, *there, "--follow")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "goes on from checkpoint" in resumed.stdout
    assert status(project)["state"] == "completed"
    done = rankfire(project, head.environment, "submit", JOB, *epochs, *there)
    assert "has finished there already" in done.stdout


@pytest.mark.parametrize("command", [["submit", JOB], ["status", "x"], ["logs", "x"], ["stop", "x"]])
def test_a_wrong_token_is_told_at_once_by_every_command(head: Head, project: Path, command: list[str]) -> None:
    wrong = {**head.environment, "RAY_AUTH_TOKEN": "0" * 64}
    end = rankfire(project, wrong, *command, "--address", head.url)
    assert (end.returncode, "another one, from RAY_AUTH_TOKEN" in end.stderr) == (3, True)


def test_attaching_with_a_wrong_token_is_told_without_waiting_for_ray(head: Head, project: Path) -> None:
    wrong = {**head.environment, "RAY_AUTH_TOKEN": "0" * 64}
    end = rankfire(project, wrong, "run", JOB, "--set", f"cluster.address={head.address}")
    assert (end.returncode, "another one, from RAY_AUTH_TOKEN" in end.stderr) == (3, True)
    assert "InvalidAuthToken" not in end.stderr


@pytest.mark.skipif(not all(map(shutil.which, NEEDED)), reason="apt install slurm-wlm munge")
def test_under_slurm_it_saves_is_requeued_and_resumes(project: Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RANKFIRE_PYTHON": sys.executable,
        "PYTHONPATH": str(TOP),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # one node, on loopback
    }
    script = rankfire(project, environment, "render", "slurm", JOB, "--set", "train.max_epochs=40")
    assert script.returncode == 0, script.stderr
    (project / "run.sbatch").write_text(script.stdout)
    with slurm() as cluster:
        cluster.environment |= environment
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")

        def told() -> str:
            return "\n".join(log.read_text() for log in project.glob("rankfire-digits-*.log"))

        def sent(epoch: int) -> str:
            """Hand the job in, and wait until it has come so far."""
            job = cluster.ask("sbatch", "--parsable", "run.sbatch", cwd=project)
            come = lambda: status(project)["epoch"] >= epoch or cluster.state(job) in ended  # noqa: E731
            wait_until(come, LONG, f"epoch {epoch}", 1.0)
            assert cluster.state(job) == "RUNNING", told()
            return job

        job = sent(epoch=2)
        stopped = rankfire(project, environment, "stop", "digits")
        assert "has ended: interrupted" in stopped.stdout, stopped.stderr + told()
        wait_until(lambda: cluster.state(job) in ended, LONG, "the stopped job to end", 1.0)
        assert cluster.told(job, "Restarts") == "0", told()

        job = sent(epoch=status(project)["epoch"] + 2)
        cluster.ask("scancel", "--batch", "--signal=USR1", job)  # what --signal sends before the time limit
        wait_until(lambda: cluster.state(job) in ended, LONG, "the requeued job to end", 1.0)
        assert (cluster.state(job), cluster.told(job, "Restarts")) == ("COMPLETED", "1"), told()
    told_of = ("RUN_INTERRUPTED", "RESUMED", "RUN_COMPLETED")
    names = [event["event"] for event in events(project) if event["event"] in told_of]
    assert names == [*told_of[:2], *told_of]
    assert status(project) | {"state": "completed", "epoch": 40} == status(project)
    assert list(project.glob(".rankfire-*")) == []  # the token went with the job
