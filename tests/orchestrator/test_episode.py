"""One fault, or growth, as it is told: to handlers, to the journal, and in a line for people."""

import time

import pytest

from orchestrator.cluster_events import WorkerLost
from orchestrator.episode import Episode, loss_in_words
from workers.parcels import GateKey, LoadPoint, SnapshotLabel

LOST = WorkerLost(rank=1, cause="crash", text="its stream ended", pid=7, node="a", host="h")
CUT = SnapshotLabel(iteration=8)
SAVED = LoadPoint(url="/runs/a/checkpoints/step-00000006", world_size=2, iteration=6)
OTHERS = LoadPoint(url="/runs/b/checkpoints/step-00000100", world_size=2, entries=("model",))


def episode(*, fault: bool = True, lost: bool = True) -> Episode:
    one = Episode(time.monotonic(), fault, reached=11)
    if lost:
        one.lost[1] = LOST
        one.causes += ["crash", "crash"]
    return one


@pytest.mark.parametrize(
    ("back", "source", "iteration", "replayed"),
    [(CUT, "snapshot", 8, 3), (SAVED, "checkpoint", 6, 5), (OTHERS, "start", 0, 11), (None, "start", 0, 11)],
)
def test_a_recovery_says_from_where_to_where_all_went_back(
    back: SnapshotLabel | LoadPoint | None, source: str, iteration: int, replayed: int
) -> None:
    told = episode().recovered(back, world_size=2, generation=1)
    assert (told.ranks, told.causes, told.world_size, told.generation) == ((1,), ("crash",), 2, 1)
    assert (told.source, told.iteration, told.replayed) == (source, iteration, replayed)


@pytest.mark.parametrize(
    ("back", "now", "words"),
    [
        (CUT, 2, "back to iteration 8 (lost: rank 1)"),
        (SAVED, 1, "back to the checkpoint of iteration 6 (lost: rank 1; 2 ranks → 1)"),
        (None, 3, "back to the start (lost: rank 1; 2 ranks → 3)"),
    ],
)
def test_a_line_tells_of_a_recovery(back: SnapshotLabel | LoadPoint | None, now: int, words: str) -> None:
    one = episode()
    told = one.in_words(one.recovered(back, world_size=now, generation=1), before=2)
    assert told is not None
    assert told.startswith("recovered in ")
    assert told.endswith(f" s, {words}")


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [(1, 2, "a worker joined: 1 rank → 2"), (2, 4, "2 workers joined: 2 ranks → 4"), (2, 2, None)],
)
def test_growth_is_no_recovery(before: int, now: int, words: str | None) -> None:
    one = episode(fault=False, lost=False)
    assert one.in_words(one.recovered(CUT, world_size=now, generation=1), before) == words


def test_what_a_rank_leaves_behind_is_that_of_the_same_place_though_it_did_not_live_to_the_last_order() -> None:
    gate = GateKey(engine="trainer", event="EPOCH_COMPLETED", count=2)
    arrived, called, later = (SnapshotLabel(iteration=8, gate=gate, order=order) for order in (0, 3, 5))
    one = episode()
    one.untaken = {1: {CUT: b"cut", arrived: b"arrived", later: b"later"}, 2: {CUT: b"another"}}
    assert one.left_at(called) == [b"arrived"]
    assert one.left_at(later) == [b"later"]
    assert one.left_at(CUT) == [b"cut", b"another"]
    assert one.left_at(None) == []


def test_broken_contact_loses_nobody() -> None:
    one = episode(lost=False)
    assert "(ranks had lost contact)" in str(one.in_words(one.recovered(CUT, world_size=2, generation=1), 2))


def test_a_line_tells_of_a_loss() -> None:
    assert loss_in_words(LOST) == "rank 1 (pid 7 on h) is lost: its stream ended"
