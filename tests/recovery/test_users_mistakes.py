"""A user's exception ends the run, whatever else goes wrong: it is told once, with its rank, and never tried again."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import TrainingError
from tests.recovery.jobs import Job, checkpoints_hold, run, until_committed
from tests.recovery.program import Fault


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
