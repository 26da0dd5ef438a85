"""Models that are sharded: a lost rank takes its part along, so all build anew and take up the newest checkpoint."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from tests.process_ranks import ProcessGroup
from tests.recovery.jobs import PER_EPOCH, Ended, Job, checkpoints_hold, run, until_committed
from tests.recovery.program import Fault, models_alive

FSDP = {"strategy": "fsdp"}
SAVED = {2: until_committed}  # the checkpoint of the first epoch, before the second one is begun


class Full(ProcessGroup):
    """Workers on a machine that has no room for whoever is started later."""

    def add(self, worker: int, *, avoid: Collection[str] = (), gives_way: bool = False) -> None:
        super().add(worker, avoid=self.nodes, gives_way=gives_way)


@pytest.mark.parametrize(("world_size", "where"), [(2, "forward"), (3, "step")])
def test_a_lost_rank_is_replaced_and_all_go_back_to_the_checkpoint(survives: Any, world_size: int, where: str) -> None:
    fault = Fault(where=where, iteration=19, rank=1)
    alive: list[list[int]] = []
    at_gate = {**SAVED, 3: lambda run, group: alive.append(run.call(models_alive))}
    job = Job(workers={"count": world_size, "spares": 1}, faults=[fault], at_gate=at_gate, prepare=FSDP)
    ended = survives(job, fired=[str(fault)], lost=[1])
    assert alive == [[1] * world_size]  # those of other process groups are gone
    assert [line["source"] for line in ended.told("RECOVERED")] == ["checkpoint"]


def test_where_nobody_takes_the_place_the_others_share_the_model_out_anew(tmp_path: Path) -> None:
    fault = Fault(where="forward", iteration=19, rank=1)
    job = Job(workers={"count": 3, "min": 2}, faults=[fault], at_gate=SAVED, prepare=FSDP, group=Full)
    worlds_end(run(job, tmp_path / "job"), fault, 2)


def test_a_rank_that_is_left_alone_goes_on_with_the_plain_model(tmp_path: Path) -> None:
    fault = Fault(where="step", iteration=19, rank=0)
    job = Job(workers={"count": 2, "min": 1}, faults=[fault], at_gate=SAVED, prepare=FSDP, group=Full)
    worlds_end(run(job, tmp_path / "job"), fault, 1)


def worlds_end(ended: Ended, fault: Fault, world_size: int) -> None:
    """All was trained, with fewer ranks in the end."""
    assert ended.error is None, getattr(ended.error, "traceback", ended.error)
    assert ended.fired == [str(fault)]
    assert [(line["world_size"], line["source"]) for line in ended.told("RECOVERED")] == [(world_size, "checkpoint")]
    assert sorted(ended.consumed) == list(range(1, 3 * PER_EPOCH + 1))
    assert len(ended.consumed[3 * PER_EPOCH]) == len(ended.digests) == world_size
    checkpoints_hold(ended, 3 * PER_EPOCH)


@pytest.mark.parametrize(("before", "after"), [(("fsdp", 2), ("ddp", 3)), (("ddp", 3), ("fsdp", 2))])
def test_a_run_goes_on_with_another_strategy_and_world(
    before: tuple[str, int], after: tuple[str, int], tmp_path: Path
) -> None:
    for epochs, (strategy, world_size) in enumerate((before, after), start=1):
        ended = run(Job(workers={"count": world_size}, prepare={"strategy": strategy}, epochs=epochs), tmp_path / "job")
        assert ended.error is None, getattr(ended.error, "traceback", ended.error)
    assert [len(ranks) for ranks in ended.consumed.values()] == [before[1]] * PER_EPOCH + [after[1]] * PER_EPOCH
    assert ended.metrics[-1]["loss"] < 5
    assert "RESUMED" in [line["event"] for line in ended.journal]
