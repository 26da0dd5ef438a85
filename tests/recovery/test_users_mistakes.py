"""A user's exception ends the run, whatever else goes wrong: it is told once, with its rank, and never tried again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from orchestrator import Orchestrator, TrainingError
from tests.process_ranks import ProcessGroup
from tests.recovery.jobs import Job, checkpoints_hold, run, until_committed
from tests.recovery.program import Fault
from tests.waiting import wait_until
from workers import Worker
from workers.stacks import state_of


@pytest.mark.parametrize("where", ["forward", "backward", "handler"])
def test_an_exception_on_one_rank_is_not_tried_again(tmp_path: Path, where: str) -> None:
    fault = Fault(where=where, iteration=19, rank=1, how="raise")
    ended = run(Job(faults=[fault], at_gate={2: until_committed}), tmp_path / "job")
    assert isinstance(ended.error, TrainingError)
    assert "rank 1 raised ValueError: a mistake of the user's (program.py:" in str(ended.error)
    assert (ended.fired, ended.told("RECOVERED"), ended.epochs) == ([str(fault)], [], [1, 2])
    assert ended.journal[-1]["event"] == "RUN_FAILED"
    checkpoints_hold(ended)


@pytest.mark.parametrize(("wrong", "killed"), [("forward", "forward"), ("forward", "backward"), ("step", "forward")])
def test_an_exception_counts_also_where_another_rank_dies(tmp_path: Path, wrong: str, killed: str) -> None:
    faults = [
        Fault(where=wrong, iteration=11, rank=0, how="raise"),
        Fault(where=killed, iteration=11, rank=1, how="kill"),
    ]
    ended = run(Job(faults=faults), tmp_path / "job")
    if wrong == "step":  # rank 0 comes there only when rank 1 has been replaced
        assert [line["rank"] for line in ended.told("WORKER_LOST")] == [1]
    else:
        assert ended.told("RECOVERED") == []
    assert isinstance(ended.error, TrainingError)
    assert "rank 0 raised ValueError: a mistake of the user's" in str(ended.error)
    assert str(faults[0]) in ended.fired


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_exception_that_reads_like_a_lost_peer_is_not_tried_again(tmp_path: Path, where: str) -> None:
    fault = Fault(where=where, iteration=11, rank=1, how="peer")
    ended = run(Job(faults=[fault]), tmp_path / "job")
    assert isinstance(ended.error, TrainingError)
    assert "rank 1 raised RuntimeError: the object store says: Connection closed by peer (program.py:" in str(
        ended.error
    )
    assert (ended.fired, ended.told("RECOVERED")) == ([str(fault)], [])


def raise_or_die(worker: Worker, folder: str, dies_first: bool) -> None:
    """Rank 0 dies in a call in which another one raises."""
    raised, dead = Path(folder, "raised"), Path(folder, "dead")
    if worker.rank == 0:
        wait_until(lambda: dies_first or raised.exists(), 60, "the other one raises")
        dead.with_suffix(".new").write_text(str(os.getpid()))
        dead.with_suffix(".new").rename(dead)
        os.kill(os.getpid(), signal.SIGKILL)
    wait_until(
        lambda: not dies_first or (dead.exists() and state_of(int(dead.read_text())) in "Z"), 60, "rank 0 is dead"
    )
    raised.touch()
    raise ZeroDivisionError("a mistake in a call")


@pytest.mark.parametrize("dies_first", [True, False])
def test_an_exception_in_a_call_in_which_another_rank_dies_is_not_tried_again(tmp_path: Path, dies_first: bool) -> None:
    def act(run: Orchestrator, group: ProcessGroup) -> None:
        run.call(raise_or_die, str(tmp_path), dies_first)

    ended = run(Job(at_gate={1: act}), tmp_path / "job")
    assert isinstance(ended.error, TrainingError)
    assert "orchestrator.call: rank 1 raised ZeroDivisionError: a mistake in a call (test_users_mistakes.py:" in str(
        ended.error
    )
    assert (tmp_path / "raised").exists()
    assert (tmp_path / "dead").exists()
    assert ended.told("RECOVERED") == []
