"""Whether a save comes on: by what ranks tell of their files, in the time in which the driver listens."""

from __future__ import annotations

from typing import Any

from orchestrator.flight import Flight
from workers.messages import Pulse, Saved
from workers.parcels import SnapshotLabel, Writing

STAMP: dict[str, Any] = {"generation": 0, "seq": 1}


def flight() -> Flight:
    """Two ranks write, workers 10 and 11."""
    nothing: Any = None
    label = SnapshotLabel(iteration=3)
    return Flight(staging=nothing, manifest=nothing, plan=nothing, writers={10: 0, 11: 1}, label=label)


def pulse(worker: int, count: int | None) -> Pulse:
    """It has written so much of its file; None: it does not write."""
    writing = None if count is None else Writing(path=f"data/{worker}", bytes=count)
    return Pulse(
        **STAMP, worker=worker, rank=worker - 10, phase="training", iteration=3, epoch=1, moves=0, idle=0.0, busy=0.0,
        samples=0, drops=0, output={}, writing=writing,
    )  # fmt: skip


def watched(counts: dict[int, list[int | None]], *, step: float = 0.5) -> Flight:
    """After so many looks, at each of which the ranks had written so much."""
    seen = flight()
    for look, now in enumerate(zip(*counts.values(), strict=True)):
        seen.look([pulse(worker, count) for worker, count in zip(counts, now, strict=True)], look * step)
    return seen


def test_who_stands_still_for_too_long_is_named_with_its_file() -> None:
    seen = watched({10: list(range(10)), 11: [3] * 10})
    assert seen.stuck(5.0) is None
    stuck = seen.stuck(4.0)
    assert stuck is not None
    assert str(stuck) == (
        "rank 1 has not come on for 4 s with data/11, of which it has 3 bytes: the storage does not answer"
    )


def test_the_next_file_is_progress_and_so_is_each_byte() -> None:
    assert watched({10: [0, 1, 2, 3], 11: [5, 5, None, 5]}).stuck(0.5) is None


def test_who_has_told_that_it_is_done_owes_nothing() -> None:
    seen = watched({10: [3] * 10, 11: [None] * 10})
    assert seen.stuck(1.0) is not None
    seen.told = {rank: Saved(**STAMP, worker=10 + rank, rank=rank, url="u") for rank in (0, 1)}
    assert seen.stuck(1.0) is None


def test_time_in_which_the_driver_did_not_look_does_not_count() -> None:
    seen = watched({10: [3, 3], 11: [3, 3]}, step=600.0)
    assert seen.stuck(1.0) is None


def test_who_says_nothing_any_more_is_not_judged_by_that() -> None:
    """It is stopped or lost, and others see to that."""
    seen, last = flight(), pulse(11, 3)
    for now in range(600):
        seen.look([pulse(10, now), last], now)
    assert seen.stuck(1.0) is None


def test_who_is_not_among_the_writers_is_nobodys_concern() -> None:
    assert watched({12: [3] * 10}).stuck(1.0) is None
