"""The driver's way through faults, on simulated ranks: a thousand schedules of messages and faults, each by its seed.

Seeds are fixed, so that a run of the suite says what the one before said. `RANKFIRE_SCHEDULES=20000` plays more of
them, `RANKFIRE_FIRST` says from which seed on, `RANKFIRE_SEED=4711` plays one and prints what happened.
"""

from __future__ import annotations

import gc
import logging
import os
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.simulation.config import CLASSES, Config
from tests.simulation.faults import KINDS, Strike
from tests.simulation.schedule import Outcome, play, run_schedule, undisturbed
from tests.simulation.telling import report, trace

SCHEDULES = int(os.environ.get("RANKFIRE_SCHEDULES", "1000"))
FIRST = int(os.environ.get("RANKFIRE_FIRST", "0"))
SEED = os.environ.get("RANKFIRE_SEED")
PARTS = 8  # tests into which the schedules are dealt
AT_MOST = 5  # failures after which a part gives up


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Storage that stumbles on purpose need not be logged; and nobody collects garbage in the middle."""
    logging.disable(logging.ERROR)
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def tally() -> Counter[str]:
    """What struck, and how runs ended, over all schedules."""
    return Counter()


@pytest.mark.skipif(SEED is not None, reason="one seed is played")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_schedule_of_faults_changes_what_is_trained(part: int, tally: Counter[str]) -> None:
    wrong: list[Outcome] = []
    for seed in range(FIRST + part, FIRST + SCHEDULES, PARTS):
        outcome = run_schedule(seed)
        tally.update(strike.kind for strike in outcome.strikes if strike.struck is not None)
        tally[f"ended: {outcome.ended}"] += 1
        if outcome.wrong is not None:
            wrong.append(outcome)
            if len(wrong) == AT_MOST:
                break
    assert not wrong, report(wrong)


@pytest.mark.skipif(SEED is not None or SCHEDULES < 1000, reason="only many schedules have everything")
def test_every_kind_of_fault_has_struck(tally: Counter[str]) -> None:
    if sum(tally[name] for name in tally if name.startswith("ended")) < SCHEDULES:
        pytest.skip("not all schedules were played")
    assert [kind for kind in KINDS if not tally[kind]] == []
    assert tally["ended: completed"] > SCHEDULES / 2


@pytest.mark.skipif(SEED is None, reason="no RANKFIRE_SEED")
def test_one_schedule() -> None:
    outcome = run_schedule(int(SEED or 0))
    print(trace(outcome))
    assert outcome.wrong is None, outcome.wrong


# ---------------------------------------------------------------- the simulation itself
def test_a_schedule_is_the_same_each_time_it_is_played() -> None:
    first, again = run_schedule(3), run_schedule(3)
    assert [str(line) for line in first.world.trace] == [str(line) for line in again.world.trace]


def test_what_an_undisturbed_run_does_does_not_depend_on_the_order_of_messages() -> None:
    for number in range(CLASSES):
        outcome = play(Config.draw(number), f"in another order {number}", [], undisturbed(number))
        assert outcome.wrong is None, report([outcome])


def test_a_state_that_never_was_is_seen() -> None:
    number = next(n for n in range(CLASSES) if not Config.draw(n).elastic and Config.draw(n).workers["count"] == 2)
    like = undisturbed(number)
    other = play(Config.draw(number), "other", [], None).world.oracle
    for known in other.states.values():
        known.pop()
    outcome = play(Config.draw(number), "compared", [], other)
    assert like.states
    assert "in which it never was" in (outcome.wrong or "")


@pytest.mark.parametrize("kind", ["kill", "silence"])
def test_somebody_stands_in_for_who_is_lost_before_training(kind: str) -> None:
    struck = 0
    for number in range(CLASSES):
        for count in (0, 1):
            strike = Strike(kind=kind, step="build", count=count)
            outcome = play(Config.draw(number), f"early {kind} {count} {number}", [strike], undisturbed(number))
            assert outcome.wrong is None, report([outcome])
            assert outcome.ended in ("completed", "terminated"), report([outcome])
            struck += strike.struck is not None
    assert struck > CLASSES


def test_ranks_that_are_killed_before_training_each_time_end_the_run() -> None:
    strikes = [Strike(kind="kill", step="build", count=1) for _ in range(9)]
    outcome = play(Config.draw(0), "early", strikes, undisturbed(0))
    assert outcome.wrong is None
    assert outcome.ended == "RecoveryError"


@pytest.mark.parametrize(
    ("kind", "ends"), [("astray", {"completed", "terminated"}), ("astray always", {"RecoveryError"})]
)
def test_ranks_in_different_collectives_go_back_and_do_not_try_for_ever(kind: str, ends: set[str]) -> None:
    struck = 0
    for number in range(CLASSES):
        strike = Strike(kind=kind, step="step", count=4)
        outcome = play(Config.draw(number), f"{kind} {number}", [strike], undisturbed(number))
        assert outcome.wrong is None, report([outcome])
        if strike.struck is not None:
            assert outcome.ended in ends, report([outcome])
            struck += 1
    assert struck > CLASSES / 2


def test_a_new_worker_that_stops_before_it_is_up_is_given_up_for_another() -> None:
    struck = 0
    for number in range(CLASSES):
        config = Config.draw(number)
        strikes = [Strike(kind="kill", step="step", count=4), Strike(kind="silence", step="start", count=0, after=0)]
        outcome = play(config, f"a silent newcomer {number}", strikes, undisturbed(number))
        assert outcome.wrong is None, report([outcome])
        if strikes[1].struck is not None and not outcome.world.starved:
            assert outcome.ended in ("completed", "terminated"), report([outcome])
            struck += config.workers["spares"] == 0
    assert struck > 3


def test_a_storage_that_never_returns_from_a_write_holds_nobody_up_for_ever() -> None:
    struck: Counter[str] = Counter()
    for number in range(CLASSES):
        config = Config.draw(number)
        strike = Strike(kind="hang write", step="write", count=2)
        outcome = play(config, f"hanging storage {number}", [strike], undisturbed(number))
        assert outcome.wrong is None, report([outcome])
        if strike.struck is not None:
            stops = config.saves is None or config.saves["on_save_error"] == "stop"
            assert outcome.ended in (("CheckpointError",) if stops else ("completed", "terminated")), report([outcome])
            assert any(b"was given up: rank" in content for content in outcome.world.disk.files.values())
            struck[outcome.ended] += 1
    assert set(struck) >= {"CheckpointError", "completed"}
