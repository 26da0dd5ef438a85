import re

import numpy as np
import pytest

from workers.events import Events

STEP = Events.ITERATION_COMPLETED
HEAD = "ITERATION_COMPLETED"
ALONE = "expected exactly one of once, event_filter, throttle, timeout, or any of every, before, after"


@pytest.mark.parametrize(
    ("filters", "received"),
    [
        ({}, "nothing"),
        ({"every": 2, "once": 3}, "every, once"),
        ({"once": 2, "throttle": 3.0}, "once, throttle"),
        ({"after": 2, "timeout": 3.0}, "after, timeout"),
    ],
)
def test_filters_that_do_not_go_together_are_refused(filters, received):
    with pytest.raises(ValueError, match=re.escape(f"{HEAD}(...): {ALONE}, received {received}")):
        STEP(**filters)


@pytest.mark.parametrize("name", ["every", "once", "before", "after"])
@pytest.mark.parametrize("value", [1.5, "3", True, 2.0, object])
def test_a_count_is_an_integer(name, value):
    with pytest.raises(TypeError, match=rf"{HEAD}\({name}=...\): expected a positive integer.*, received"):
        STEP(**{name: value})


@pytest.mark.parametrize("name", ["every", "once", "before", "after"])
@pytest.mark.parametrize("value", [0, -3])
def test_a_count_is_positive(name, value):
    with pytest.raises(ValueError, match=rf"{HEAD}\({name}=...\): expected a positive integer.*received {value}"):
        STEP(**{name: value})


@pytest.mark.parametrize("name", ["every", "once"])
def test_every_number_of_a_list_is_checked(name):
    with pytest.raises(ValueError, match=rf"{name}=...\): expected a positive integer or several, received -1"):
        STEP(**{name: [3, -1]})
    with pytest.raises(ValueError, match=rf"{name}=...\): expected at least one number, received \[\]"):
        STEP(**{name: []})


def test_numpy_integers_count():
    assert STEP(every=np.int64(3)) == STEP(every=3)
    assert STEP(once=np.array([3, 5])) == STEP(once=[3, 5])
    assert STEP(every=np.array(3), after=np.int32(4)) == STEP(every=3, after=4)


@pytest.mark.parametrize("name", ["throttle", "timeout"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0, ValueError),
        (-1.5, ValueError),
        (float("inf"), ValueError),
        (float("nan"), ValueError),
        ("5", TypeError),
        (True, TypeError),
        ([1], TypeError),
    ],
)
def test_seconds_are_a_positive_number(name, value, error):
    with pytest.raises(error, match=rf"{HEAD}\({name}=...\): expected a positive number of seconds, received"):
        STEP(**{name: value})


def test_an_event_filter_can_be_called():
    with pytest.raises(TypeError, match=r"event_filter=...\): expected a function f\(engine, count\), received 3"):
        STEP(event_filter=3)


def test_an_event_filter_takes_the_engine_and_the_count():
    with pytest.raises(ValueError, match=r"received one with the signature \(count\)"):
        STEP(event_filter=lambda count: True)
    assert STEP(event_filter=max).matches(STEP, 3, 2)
