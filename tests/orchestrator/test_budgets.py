"""How often a run is recovered: budgets by cause in a window that moves, pauses, and recoveries that get nowhere."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.budgets import LONGEST_PAUSE, Budgets, Progress, Stuck
from orchestrator.causes import Cause
from orchestrator.spec import RestartsSpec
from workers.parcels import GateKey

CAUSES: tuple[Cause, ...] = ("preemption", "crash", "oom", "hang", "network")
EPOCH = GateKey(engine="trainer", event="EPOCH_COMPLETED", count=1)


@pytest.mark.parametrize(("cause", "allowed"), [("crash", 10), ("oom", 2), ("hang", 5), ("network", 10)])
def test_each_cause_has_a_budget_of_its_own(cause: Cause, allowed: int) -> None:
    budgets = Budgets(RestartsSpec())
    assert [budgets.charge(cause, now=0.0).spent for _ in range(allowed + 1)] == [False] * allowed + [True]
    assert not any(budgets.charge(other, now=0.0).spent for other in CAUSES if other != cause)


def test_preemption_is_never_too_much_and_never_waits() -> None:
    budgets = Budgets(RestartsSpec())
    charges = [budgets.charge("preemption", now=0.0) for _ in range(1000)]
    assert not any(charge.spent or charge.pause for charge in charges)


def test_the_first_recoveries_begin_at_once_later_ones_after_longer_and_longer_pauses() -> None:
    budgets = Budgets(RestartsSpec(crash=1000))
    pauses = [budgets.charge("crash", now=float(n)).pause for n in range(100)]
    assert pauses[:9] == [0.0, 0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert set(pauses[9:]) == {LONGEST_PAUSE}


@pytest.mark.parametrize(("now", "number"), [(99.9, 2), (100.0, 1)])
def test_what_is_longer_ago_than_the_window_is_forgotten(now: float, number: int) -> None:
    budgets = Budgets(RestartsSpec(oom=1, window=100.0))
    assert not budgets.charge("oom", now=0.0).spent
    charge = budgets.charge("oom", now)
    assert (charge.number, charge.spent) == (number, number == 2)


def test_a_budget_of_none_refuses_the_first() -> None:
    assert Budgets(RestartsSpec(hang=0)).charge("hang", now=5.0).spent


@given(
    gaps=st.lists(st.tuples(st.sampled_from(CAUSES), st.floats(0.0, 40.0)), max_size=40),
    allowed=st.integers(0, 5),
    window=st.floats(1.0, 100.0),
)
def test_no_window_holds_more_recoveries_of_a_cause_than_allowed(
    gaps: Sequence[tuple[Cause, float]], allowed: int, window: float
) -> None:
    budgets = Budgets(RestartsSpec(crash=allowed, oom=allowed, hang=allowed, network=allowed, window=window))
    now, done = 0.0, []
    for cause, gap in gaps:
        now += gap
        if not budgets.charge(cause, now).spent and cause != "preemption":
            done.append((cause, now))
    for cause, end in done:
        assert sum(other == cause and end - window < at <= end for other, at in done) <= allowed


def test_an_iteration_that_fails_three_times_is_named() -> None:
    progress = Progress()
    assert [progress.failed(7), progress.failed(7)] == [None, None]
    assert progress.failed(7) == Stuck(iteration=7, gate=None, times=3)


def test_other_failures_in_between_do_not_hide_it_but_getting_past_it_does() -> None:
    progress = Progress(recoveries=10)
    assert [progress.failed(n) for n in (7, 5, 7, 6)] == [None] * 4
    assert str(progress.failed(7)) == "iteration 7"
    progress = Progress(recoveries=10)
    assert [progress.failed(n) for n in (7, 7, 8, 7, 7, 8)] == [None] * 6


def test_a_gate_that_fails_three_times_is_named() -> None:
    progress = Progress()
    assert [progress.failed(8), progress.failed(8, EPOCH), progress.failed(8, EPOCH)] == [None] * 3
    assert str(progress.failed(8, EPOCH)) == "iteration 8 at trainer EPOCH_COMPLETED #1"


def test_recoveries_that_bring_nothing_come_to_an_end() -> None:
    progress = Progress()
    assert [progress.failed(n) for n in (9, 3, 4)] == [None] * 3
    assert progress.failed(5) == Stuck(iteration=None, gate=None, times=3)


def test_ranks_that_never_join_come_to_an_end_but_blame_no_iteration() -> None:
    progress = Progress()
    assert [progress.failed(None) for _ in range(3)] == [None] * 3
    assert progress.failed(None) == Stuck(iteration=None, gate=None, times=3)


@given(st.lists(st.integers(0, 5), max_size=12))
def test_a_run_that_comes_farther_each_time_never_ends(steps: Sequence[int]) -> None:
    progress = Progress()
    iteration = 0
    for step in steps:
        iteration += step + 1
        assert progress.failed(iteration) is None


@given(st.lists(st.one_of(st.none(), st.integers(0, 20)), min_size=4))
def test_without_new_ground_a_run_ends_after_four_failures_at_most(iterations: Sequence[int | None]) -> None:
    progress = Progress()
    progress.failed(21)
    assert any(progress.failed(iteration) for iteration in iterations[:4])
