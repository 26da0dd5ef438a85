"""Where no rank has a snapshot left: back to the newest checkpoint, else to the start. And where it is given up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator import Orchestrator
from orchestrator.errors import RecoveryError
from tests.process_ranks import ProcessGroup
from tests.recovery.jobs import PER_EPOCH, Job, checkpoints_hold, kill, run, until_committed
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


def damage_the_newest_and_kill_all(run: Orchestrator, group: ProcessGroup) -> None:
    """A bit of its data is flipped, when it is whole."""
    until_committed(run, group)
    storage = run.registry.committed()[-1].storage
    content = bytearray(storage.read("data/__0_0.distcp"))
    content[len(content) // 2] ^= 16
    storage.replace("data/__0_0.distcp", bytes(content))
    kill(0, 1)(run, group)


@pytest.mark.parametrize("at_end", [True, False])
def test_a_checkpoint_that_is_found_damaged_after_a_fault_is_made_again(survives: Any, at_end: bool) -> None:
    """At the end of the epoch whose it was, once more, with what was measured there."""
    strike = damage_the_newest_and_kill_all
    job = Job(
        workers={"count": 2, "spares": 2}, at_gate={} if at_end else {3: strike}, at_end=strike if at_end else None
    )
    ended = survives(job, fired=[], lost=[0, 1])
    damaged = (3 if at_end else 2) * PER_EPOCH
    assert [f"step-{damaged:08d}: " in line["text"] for line in ended.told("CHECKPOINT_REFUSED")] == [True]
    assert [line["iteration"] for line in ended.told("RECOVERED")] == [damaged - PER_EPOCH]
    checkpoints = ended.registry.committed()
    assert [one.manifest.iteration for one in checkpoints] == [PER_EPOCH, 2 * PER_EPOCH, 3 * PER_EPOCH]
    assert all("validation/mse" in one.manifest.metrics for one in checkpoints)
