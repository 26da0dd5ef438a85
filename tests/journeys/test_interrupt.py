"""Ctrl-C, as a terminal sends it, and SIGTERM, as `timeout` does: to the whole process group of `rankfire run`.

And SIGTERM to the driver alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.journal import read_journal
from tests.waiting import wait_until

JOB = """\
run: endless
program: tests.journeys.programs:{program}
handlers: handlers:attach
train: {{max_epochs: 1000000}}
workers: 2
checkpoint: {{every: 1000000, keep: 1}}
config: {{deaf: {storage}/../deaf}}
storage: {storage}
"""

HANDLERS = """\
import pathlib, sys
from workers import Events

def attach(orchestrator):
    @orchestrator.on(Events.EPOCH_COMPLETED(once=3))
    def tell():
        pathlib.Path("third-epoch").touch()
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    """Start `rankfire run` on a job that never ends, in a process group of its own."""
    started: list[subprocess.Popen[str]] = []

    def run(program: str = "linear", *, wait: bool = True) -> subprocess.Popen[str]:
        (tmp_path / "handlers.py").write_text(HANDLERS)
        (tmp_path / "job.yaml").write_text(JOB.format(program=program, storage=tmp_path / "runs"))
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", "run", "job.yaml"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        if not wait:
            return process
        wait_until(lambda: (tmp_path / "third-epoch").exists() or process.poll() is not None, 90, "the third epoch")
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def events(folder: Path) -> list[str]:
    return [line["event"] for line in read_journal(folder / "runs" / "endless" / "journal.jsonl")]


def test_ctrl_c_once_stops_at_a_common_iteration_and_saves(start: object, tmp_path: Path) -> None:
    process = start()  # type: ignore[operator]
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "stopping at the next iteration; press Ctrl-C again to stop now" in told
    assert "error: run 'endless' was interrupted after iteration" in told
    assert events(tmp_path)[-2:] == ["CHECKPOINT_COMMITTED", "RUN_INTERRUPTED"]


def test_sigterm_of_the_drivers_group_stops_and_saves_like_ctrl_c(start: object, tmp_path: Path) -> None:
    process = start()  # type: ignore[operator]
    os.killpg(process.pid, signal.SIGTERM)  # as of timeout(1): Ray, which was started here, must not end before the run
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "stopping at the next iteration; send SIGTERM again to stop now" in told
    assert events(tmp_path)[-2:] == ["CHECKPOINT_COMMITTED", "RUN_INTERRUPTED"]


def test_sigterm_that_ends_rays_processes_too_while_they_start_ends_the_run_cleanly(
    start: object, tmp_path: Path
) -> None:
    process = start(wait=False)  # type: ignore[operator]
    wait_until(lambda: raylet_of(process.pid) or process.poll() is not None, 90, "a raylet")
    os.killpg(process.pid, signal.SIGTERM)
    _, told = process.communicate(timeout=45)
    assert process.returncode == 130, told
    assert "error: run 'endless' was interrupted before it trained; nothing was saved" in told
    assert events(tmp_path)[-1] == "RUN_INTERRUPTED"
    wait_until(lambda: not raylet_of(process.pid), 30, "no raylet is left")


def raylet_of(session: int) -> bool:
    """Whether a raylet lives in this session."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                program = (entry / "cmdline").read_bytes().partition(b"\0")[0]
                if program.endswith(b"/raylet") and os.getsid(int(entry.name)) == session:
                    return True
    return False


def test_ctrl_c_twice_stops_at_once(start: object, tmp_path: Path) -> None:
    process = start("stops_listening")  # type: ignore[operator]
    wait_until(lambda: (tmp_path / "deaf").exists(), 30, "a rank that will not get to its next iteration")
    os.killpg(process.pid, signal.SIGINT)
    assert any("press Ctrl-C again" in line for line in process.stderr)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "error: run 'endless' was interrupted at once" in told
    assert events(tmp_path)[-1] == "RUN_INTERRUPTED"
    assert "RUN_FAILED" not in events(tmp_path)
