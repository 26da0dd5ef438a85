"""A user's exception in words: where it was raised, and the traceback without how we came to call the user."""

import json

import pytest

from workers.engine import Engine
from workers.tracebacks import is_ours, only_ours, place_of, text_of

HERE = "test_tracebacks.py"


def raised(step):
    with pytest.raises((ValueError, RuntimeError), match=r".") as caught:
        Engine(step).run([1])
    caught.value.__traceback__ = caught.value.__traceback__.tb_next.tb_next  # without this function, as on a rank
    return caught.value


def fail(*_):
    raise ValueError("my bug")


def fail_in_a_library(*_):
    json.loads("{")


def fail_again(*_):
    try:
        fail()
    except ValueError as error:
        raise RuntimeError("so it goes") from error


def test_the_traceback_begins_at_the_users_first_frame():
    error = raised(fail)
    assert is_ours(error.__traceback__.tb_frame.f_code.co_filename)
    lines = text_of(error).splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert f"{HERE}" in lines[1]
    assert lines[1].endswith("in fail")
    assert lines[-1] == "ValueError: my bug"
    assert "engine.py" not in text_of(error)


def test_causes_keep_their_own_tracebacks():
    text = text_of(raised(fail_again))
    assert [line for line in text.splitlines() if line.startswith(("ValueError", "RuntimeError", "The above"))] == [
        "ValueError: my bug",
        "The above exception was the direct cause of the following exception:",
        "RuntimeError: so it goes",
    ]
    assert "engine.py" not in text


def test_an_exception_of_our_own_keeps_its_whole_traceback():
    with pytest.raises(TypeError) as caught:
        Engine(3)
    caught.value.__traceback__ = caught.value.__traceback__.tb_next
    assert "engine.py" in text_of(caught.value)
    assert place_of(caught.value) is None


def test_an_exception_is_only_ours_if_no_line_of_others_is_in_it_or_in_its_causes():
    with pytest.raises(TypeError) as caught:
        Engine(3)
    error = caught.value
    assert not only_ours(error)  # this test called it
    error.__traceback__ = error.__traceback__.tb_next
    assert only_ours(error)
    error.__cause__ = error  # a chain that bites its own tail
    assert only_ours(error)
    error.__cause__ = raised(fail)
    assert not only_ours(error)


@pytest.mark.parametrize("step", [fail, fail_in_a_library])
def test_the_place_is_the_users_innermost_line(step):
    assert place_of(raised(step)) == f"{HERE}:{step.__code__.co_firstlineno + 1}"
