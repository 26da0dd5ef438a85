"""Who has arrived where: gates that fill, ranks at different gates, and reports in passing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.roll_call import Observations, RollCall
from workers.parcels import GateKey


def epoch(count: int) -> GateKey:
    return GateKey(engine="trainer", event="EPOCH_COMPLETED", count=count)


def test_a_roll_call_is_full_when_the_last_rank_has_arrived() -> None:
    call: RollCall[str] = RollCall(2)
    call.arrive(1, epoch(3), "b")
    assert (call.full, call.present, call.missing) == (False, (1,), (0,))
    call.arrive(0, epoch(3), "a")
    assert (call.full, call.present, call.missing) == (True, (0, 1), ())


def test_a_full_roll_call_is_taken_by_rank_and_empty_afterwards() -> None:
    call: RollCall[str] = RollCall(2)
    call.arrive(1, epoch(3), "b")
    call.arrive(0, epoch(3), "a")
    key, reports = call.take()
    assert (key, list(reports.items())) == (epoch(3), [(0, "a"), (1, "b")])
    assert (call.present, call.missing) == ((), (0, 1))


def test_ranks_at_different_gates_never_fill_a_roll_call() -> None:
    call: RollCall[str] = RollCall(3)
    call.arrive(0, epoch(1), "a")
    assert not call.mismatch
    call.arrive(2, epoch(1), "c")
    call.arrive(1, GateKey(engine="trainer", event="COMPLETED", count=1), "b")
    assert (call.full, call.mismatch) == (False, True)
    assert call.where() == {"trainer EPOCH_COMPLETED #1": [0, 2], "trainer COMPLETED #1": [1]}


def test_a_rank_can_not_arrive_twice() -> None:
    call: RollCall[str] = RollCall(2)
    call.arrive(0, epoch(1), "a")
    with pytest.raises(AssertionError, match=r"rank 0 arrived at trainer EPOCH_COMPLETED #2 while it waits at .* #1"):
        call.arrive(0, epoch(2), "a")


def test_a_roll_call_that_is_not_full_can_not_be_taken() -> None:
    with pytest.raises(AssertionError, match=r"waits for ranks \(0, 1\)"):
        RollCall[str](2).take()


def test_a_watched_firing_counts_when_all_ranks_have_reported() -> None:
    seen: Observations[str] = Observations(2)
    assert seen.report(1, epoch(1), "b") is None
    assert list((seen.report(0, epoch(1), "a") or {}).items()) == [(0, "a"), (1, "b")]


def test_a_fast_rank_may_be_ahead_in_its_reports() -> None:
    seen: Observations[int] = Observations(2)
    assert [seen.report(0, epoch(count), count) for count in (1, 2, 3)] == [None, None, None]
    assert [seen.report(1, epoch(count), -count) for count in (1, 2)] == [{0: 1, 1: -1}, {0: 2, 1: -2}]
    assert seen.dropped == 0


def test_a_report_that_one_rank_lost_is_counted_and_not_waited_for() -> None:
    seen: Observations[str] = Observations(2)
    seen.report(0, epoch(1), "a1")
    seen.report(0, epoch(2), "a2")
    assert seen.report(1, epoch(2), "b2") == {0: "a2", 1: "b2"}
    assert seen.dropped == 1
    assert seen._open == {}  # nothing is kept for a firing that can never be complete


def test_two_evaluations_of_one_engine_are_told_apart() -> None:
    seen: Observations[str] = Observations(2)
    first, second = (GateKey(engine="evaluator", event="COMPLETED", count=1, visit=visit) for visit in (4, 9))
    seen.report(0, first, "a")
    assert seen.report(1, second, "b") is None
    assert seen.report(1, first, "c") == {0: "a", 1: "c"}


@given(st.integers(1, 4).flatmap(lambda world: st.permutations(range(world))), st.integers(1, 3))
def test_the_order_of_arrival_makes_no_difference(ranks: list[int], count: int) -> None:
    call: RollCall[str] = RollCall(len(ranks))
    for rank in ranks:
        assert not call.full
        call.arrive(rank, epoch(count), f"report of {rank}")
    assert call.take() == (epoch(count), {rank: f"report of {rank}" for rank in range(len(ranks))})


@given(world=st.integers(1, 3), firings=st.integers(1, 4), data=st.data())
def test_any_interleaving_of_reports_completes_every_firing_once_in_order(
    world: int, firings: int, data: st.DataObject
) -> None:
    turns = data.draw(st.permutations([rank for rank in range(world) for _ in range(firings)]))
    seen: Observations[tuple[int, int]] = Observations(world)
    told, completed = [0] * world, []
    for rank in turns:
        told[rank] += 1
        reports = seen.report(rank, epoch(told[rank]), (rank, told[rank]))
        if reports is not None:
            completed.append(reports)
    assert completed == [{rank: (rank, count) for rank in range(world)} for count in range(1, firings + 1)]
    assert seen.dropped == 0
