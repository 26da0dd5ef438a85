"""Memory runs out on one rank: it is told as that, replaced, and charged to a budget of its own, which ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import RecoveryError
from orchestrator.killed import KILLED
from tests.recovery.jobs import Job, checkpoints_hold, run, until_committed
from tests.recovery.program import ENOUGH, Fault

LIMIT = 64  # MB beyond what a rank holds when it enters the group
assert LIMIT < ENOUGH


@pytest.fixture
def control_group() -> Iterator[Path]:
    """A control group in which processes have no more than `LIMIT` for what they ask for from then on."""
    group = Path("/sys/fs/cgroup/memory") / f"rankfire-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT << 20))
        (group / "memory.swappiness").write_text("0")
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"a limit for memory needs root and control groups of version 1: {error}")
    yield group
    group.rmdir()


def test_a_rank_that_the_kernel_kills_for_its_memory_is_told_as_that(survives: Any, control_group: Path) -> None:
    fault = Fault(where="forward", iteration=11, rank=1, how="oom")
    job = Job(faults=[fault], config={"control_group": str(control_group)}, recovery={"restarts": {"crash": 0}})
    ended = survives(job, fired=[str(fault)], lost=[1])  # charged to oom: there is nothing to spend on a crash
    (lost,) = ended.told("WORKER_LOST")
    assert lost["text"] == f"its process is gone (exit code -9); {KILLED}"


@pytest.mark.parametrize("where", ["forward", "evaluation"])
def test_a_rank_that_finds_no_memory_is_replaced(survives: Any, where: str) -> None:
    fault = Fault(where=where, iteration=16, rank=0, how="memory")
    ended = survives(Job(faults=[fault], recovery={"restarts": {"crash": 0}}), fired=[str(fault)], lost=[0])
    (lost,) = ended.told("WORKER_LOST")
    assert lost["text"].startswith("out of memory: MemoryError: no room for a batch (program.py:")


def test_memory_that_runs_out_again_and_again_ends_the_run(tmp_path: Path) -> None:
    faults = [Fault(where="forward", iteration=iteration, rank=1, how="memory") for iteration in (3, 19)]
    job = Job(faults=faults, recovery={"restarts": {"oom": 1}}, at_gate={2: until_committed})
    ended = run(job, tmp_path / "job")
    assert isinstance(ended.error, RecoveryError)
    assert "recovery.restarts.oom: expected at most 1" in str(ended.error)
    assert "MemoryError: no room for a batch (program.py:" in str(ended.error)
    assert ended.fired == sorted(map(str, faults))
    assert len(ended.told("RECOVERED")) == 1
    checkpoints_hold(ended)


def test_a_job_that_shall_not_recover_ends_with_the_users_line(tmp_path: Path) -> None:
    fault = Fault(where="forward", iteration=11, rank=1, how="memory")
    ended = run(Job(faults=[fault], recovery={"on_loss": "stop"}), tmp_path / "job")
    assert "rank 1 raised MemoryError: no room for a batch (program.py:" in str(ended.error)
    assert (ended.fired, ended.told("RECOVERED")) == ([str(fault)], [])
