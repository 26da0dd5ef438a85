import pytest

from tests.waiting import wait_until


def test_wait_until_returns_the_true_answer():
    answers = iter([0, None, "", "ready"])

    assert wait_until(lambda: next(answers), timeout=5) == "ready"


def test_wait_until_names_what_did_not_happen_and_shows_the_stacks():
    with pytest.raises(AssertionError, match=r"not within 0 s: the ship comes in") as failure:
        wait_until(lambda: False, timeout=0, what="the ship comes in")

    assert "test_wait_until_names_what_did_not_happen" in str(failure.value)


def test_an_exception_of_the_condition_ends_the_wait():
    with pytest.raises(ZeroDivisionError):
        wait_until(lambda: 1 // 0, timeout=60)
