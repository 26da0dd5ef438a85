"""A rank stands still, in whatever way: it is named with everybody's stacks, replaced, and harmless if it wakes up."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator import Orchestrator
from orchestrator.errors import RecoveryError
from tests.process_ranks import Line, ProcessGroup
from tests.recovery.jobs import Ended, Job, checkpoints_hold, run
from tests.recovery.program import Fault
from tests.waiting import wait_until

ALL = os.environ.get("RANKFIRE_FAULTS") == "all"
SEEN = {  # way of hanging → what stands in the rank's stacks
    "stop": "stop_oneself",
    "gil": "hold_the_interpreter",
    "loop": "loop_for_ever",
    "wait": "wait_for_ever",
}
HANGS = {"hang_timeout": 2.0}


def named(ended: Ended, rank: int, how: str, ranks: int) -> None:
    """The hang is in the journal with the rank, which was ended for it, and the stacks of all ranks are in files."""
    told = [line for line in ended.told("HANG_DETECTED") if line["rank"] == rank]
    assert told
    assert {line["stacks"] for line in ended.told("HANG_DETECTED")} == {told[0]["stacks"]}  # it was seen once
    stacks = {path.name: path.read_text() for path in Path(told[0]["stacks"]).iterdir()}
    assert sorted(stacks) == [f"rank-{number:04d}.txt" for number in range(ranks)]
    assert SEEN[how] in stacks[f"rank-{rank:04d}.txt"]


@pytest.mark.parametrize(
    ("how", "where", "rank", "ranks"),
    [
        ("stop", "forward", 1, 2),
        ("gil", "backward", 0, 2),
        ("loop", "handler", 1, 3),
        *(
            [
                ("wait", where, rank, 2)
                for where in ("forward", "backward", "all-reduce", "step", "handler", "evaluation", "call")
                for rank in (0, 1)
            ]
            if ALL
            else [("wait", "call", 1, 2)]
        ),
    ],
)
def test_a_rank_that_hangs_is_named_and_replaced(survives: Any, how: str, where: str, rank: int, ranks: int) -> None:
    fault = Fault(where=where, iteration=16 if where in {"evaluation", "call"} else 11, rank=rank, how=how)
    job = Job(workers={"count": ranks, "spares": 1}, faults=[fault], recovery=HANGS)
    ended = survives(job, fired=[str(fault)], lost=[rank])
    named(ended, rank, how, ranks)


ASTRAY = Fault(where="forward", iteration=11, rank=1, how="astray", times=9)


def test_ranks_in_different_collectives_are_charged_as_a_hang_that_tells_their_stacks(tmp_path: Path) -> None:
    ended = run(Job(faults=[ASTRAY], recovery={**HANGS, "restarts": {"hang": 0}}), tmp_path / "job")
    assert isinstance(ended.error, RecoveryError)
    assert "recovery.restarts.hang: expected at most 0 within 3600 s" in str(ended.error)
    assert "ranks wait for each other, in different collectives or for one that hangs" in str(ended.error)
    assert "(training, iteration 11)" in str(ended.error)
    assert ended.fired == [str(ASTRAY)]
    told = ended.told("HANG_DETECTED")
    assert {(line["sure"], line["iteration"]) for line in told} == {(False, 11)}
    assert told[0]["stacks"] in str(ended.error)
    assert "go_astray" in (Path(told[0]["stacks"]) / "rank-0001.txt").read_text()
    assert ended.told("WORKER_LOST") == []
    checkpoints_hold(ended)


def test_ranks_in_different_collectives_each_time_end_the_run_with_the_iteration(tmp_path: Path) -> None:
    ended = run(Job(faults=[ASTRAY], recovery=HANGS), tmp_path / "job")
    assert isinstance(ended.error, RecoveryError)
    assert "expected iteration 11 to succeed in one of 3 attempts" in str(ended.error)
    assert ended.fired == [str(ASTRAY)] * 3
    assert ended.told("RECOVERED")[0]["causes"] == ["hang"]


# ---------------------------------------------------------------- a zombie
class OutOfReach(ProcessGroup):
    """Workers that can't be ended once they are given up, as on a machine whose network is cut."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.undead: list[Line] = []

    def kill(self, worker: int) -> None:
        self._inbox.close(worker)
        self.size -= 1
        self.undead.append(self.lines.pop(worker))

    def stop(self, *, grace: float) -> list[str]:
        for line in self.undead:
            line.kill()
        return super().stop(grace=grace)


def test_a_stopped_rank_that_wakes_up_after_it_was_replaced_changes_nothing(survives: Any, tmp_path: Path) -> None:
    fault = Fault(where="forward", iteration=11, rank=1, how="stop")
    woke = tmp_path / "job" / "marks" / f"{fault}.woke"

    def wake(run: Orchestrator, group: ProcessGroup) -> None:
        assert isinstance(group, OutOfReach)
        (line,) = group.undead
        assert psutil.Process(line.pid).status() == psutil.STATUS_STOPPED
        os.kill(line.pid, signal.SIGCONT)
        wait_until(woke.exists, what="the stopped rank goes on")

    job = Job(faults=[fault], recovery=HANGS, at_gate={2: wake}, group=OutOfReach)
    ended = survives(job, fired=[str(fault)], lost=[1])
    named(ended, 1, "stop", 2)
    assert woke.exists()
