import pickle

import pytest

from workers.events import Events
from workers.state import State
from workers.timers import Timer


def test_a_new_state_is_at_the_beginning():
    state = State()
    assert (state.iteration, state.epoch, state.epoch_iteration) == (0, 0, 0)
    assert state.metrics == {}
    assert state.last_event is None


def test_attributes_may_be_added():
    state = State()
    state.best = 3
    assert state.best == 3
    assert state.get("best", 0) == 3


def test_a_missing_attribute_gets_a_hint():
    state = State()
    state.best_score = 1
    with pytest.raises(AttributeError, match=r"state has no attribute 'iterations'; did you mean 'iteration'\?"):
        _ = state.iterations
    with pytest.raises(AttributeError, match=r"did you mean 'best_score'\?"):
        _ = state.bestscore
    with pytest.raises(AttributeError, match=r"'zzz'; state.get\(name, default\) does without it"):
        _ = state.zzz


def test_get_and_setdefault_do_without_an_attribute():
    state = State()
    assert state.get("losses") is None
    assert state.get("losses", 3) == 3
    state.setdefault("losses", list).append(1)
    state.setdefault("losses", list).append(2)
    assert state.losses == [1, 2]


@pytest.mark.parametrize(("iteration", "epoch", "within"), [(5, 1, 5), (5, 2, 0), (6, 2, 1), (10, 2, 5)])
def test_the_iteration_within_the_epoch_follows_from_the_rest(iteration, epoch, within):
    state = State()
    state.iteration, state.epoch, state.epoch_length = iteration, epoch, 5
    assert state.epoch_iteration == within


def test_counters_are_read_by_event_or_key():
    state = State()
    state.counters[Events.STARTED.key] += 1
    assert state.counters[Events.STARTED] == state.counters["STARTED"] == 1
    assert state.counters["never"] == 0
    assert "never" not in state.counters


def test_followed_counters_are_the_iteration():
    state = State()
    state.following, state.iteration = ("A", "B"), 7
    state.fired["B"] = 8
    assert (state.counters["A"], state.counters["B"]) == (7, 8)


def test_a_state_can_be_pickled():
    state = State()
    state.best, state.iteration = 3, 4
    copy = pickle.loads(pickle.dumps(state))
    assert (copy.best, copy.iteration) == (3, 4)
    assert "best=3" in repr(copy)


def test_timers_form_a_table():
    run = Timer("run")
    run.add(4.0)
    run["loop"].add(3.0, count=2)
    run["loop"]["step"].add(1.0)
    head, *lines = str(run).splitlines()
    assert head.split() == ["section", "calls", "time,", "s", "share", "each,", "µs"]
    assert [line.split()[:4] for line in lines] == [
        ["run", "1", "4.0000", "100.0%"],
        ["loop", "2", "3.0000", "75.0%"],
        ["step", "1", "1.0000", "25.0%"],
    ]
    run.reset()
    assert (run.count, run.seconds, run.parts) == (0, 0.0, {})
