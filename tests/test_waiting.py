import pytest

from tests.waiting import expect_none, wait_until


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


def test_expect_none_waits_for_the_last_thing_to_go():
    left = [["a", "b"], ["b"], []]

    expect_none(lambda: left.pop(0), "left behind")

    assert left == []


def test_expect_none_lists_what_stays():
    with pytest.raises(AssertionError, match=r"^left behind:\n  process 1\n  file 2\n"):
        expect_none(lambda: ["process 1", "file 2"], "left behind", timeout=0)
