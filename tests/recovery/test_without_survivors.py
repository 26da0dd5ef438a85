"""Where no rank has a snapshot left: back to the newest checkpoint, else to the start. And where it is given up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import RecoveryError
from tests.recovery.jobs import Job, checkpoints_hold, run, until_committed
from tests.recovery.program import Fault

ALL_AT_ONCE = [Fault(where="forward", iteration=19, rank=rank) for rank in (0, 1)]
SAVED = {2: until_committed}  # the checkpoint of the first epoch, before the second one is begun


@pytest.mark.parametrize(("checkpoints", "spares"), [(True, 2), (False, 2), (True, 0)])
def test_all_ranks_die_at_once(survives: Any, checkpoints: bool, spares: int) -> None:
    job = Job(workers={"count": 2, "spares": spares}, faults=ALL_AT_ONCE, checkpoints=checkpoints, at_gate=SAVED)
    ended = survives(job, fired=sorted(map(str, ALL_AT_ONCE)), lost=[0, 1])
    assert [line["source"] for line in ended.told("RECOVERED")] == ["checkpoint" if checkpoints else "start"]


@pytest.mark.parametrize("point", ["load.read", "load.restored"])
def test_another_rank_dies_while_all_load_the_checkpoint(survives: Any, point: str) -> None:
    job = Job(workers={"count": 2, "spares": 3}, faults=ALL_AT_ONCE, points=f"{point}=kill@1!", at_gate=SAVED)
    survives(job, fired=[*sorted(map(str, ALL_AT_ONCE)), f"{point} kill 1"], lost=[0, 1, 1])


def test_an_iteration_that_fails_three_times_ends_the_run_and_is_named(tmp_path: Path) -> None:
    fault = Fault(where="forward", iteration=19, rank=1, times=5)
    ended = run(Job(workers={"count": 2, "spares": 3}, faults=[fault], at_gate=SAVED), tmp_path / "job")
    assert isinstance(ended.error, RecoveryError)
    assert "iteration 19" in str(ended.error)
    assert ended.fired == [str(fault)] * 3
    assert [line["rank"] for line in ended.told("WORKER_LOST")] == [1, 1, 1]
    assert len(ended.told("RECOVERED")) == 2
    checkpoints_hold(ended)


def test_a_budget_that_is_spent_ends_the_run(tmp_path: Path) -> None:
    faults = [Fault(where="forward", iteration=iteration, rank=1) for iteration in (3, 19)]
    ended = run(Job(faults=faults, recovery={"restarts": {"crash": 1}}, at_gate=SAVED), tmp_path / "job")
    assert isinstance(ended.error, RecoveryError)
    assert ended.fired == sorted(map(str, faults))
    assert len(ended.told("RECOVERED")) == 1
    checkpoints_hold(ended)


def test_a_job_may_say_that_a_loss_ends_it(tmp_path: Path) -> None:
    fault = Fault(where="forward", iteration=19, rank=1)
    ended = run(Job(faults=[fault], recovery={"on_loss": "stop"}, at_gate=SAVED), tmp_path / "job")
    assert "rank 1" in str(ended.error)
    assert (ended.fired, ended.told("RECOVERED")) == ([str(fault)], [])
    checkpoints_hold(ended)
