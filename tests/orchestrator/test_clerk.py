"""A thread for what may hang: it does one thing after the other, and nobody has to wait for it."""

import logging
import threading
from collections.abc import Iterator

import pytest

from orchestrator.clerk import Clerk


@pytest.fixture
def clerk() -> Iterator[Clerk]:
    clerk = Clerk("clerk")
    clerk.start()
    yield clerk
    clerk.stop()


def test_things_are_done_in_the_order_of_asking(clerk: Clerk) -> None:
    done: list[int] = []
    for number in range(100):
        clerk.submit(lambda number=number: done.append(number))
    assert clerk.wait(give_up=lambda: False)
    assert done == list(range(100))


def test_what_was_dropped_is_not_done_and_what_hangs_is_given_up(clerk: Clerk) -> None:
    begun, end, done = threading.Event(), threading.Event(), []

    def hang() -> None:
        begun.set()
        end.wait(60)

    clerk.submit(hang)
    clerk.submit(lambda: done.append(1))
    assert begun.wait(60)
    clerk.drop()
    asked: list[int] = []
    assert not clerk.wait(give_up=lambda: len(asked) > 3 or asked.append(1) is not None)
    end.set()
    assert clerk.wait(give_up=lambda: False)
    assert done == []


def test_what_fails_is_logged_and_the_next_one_gets_its_turn(clerk: Clerk, caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []
    with caplog.at_level(logging.ERROR):
        clerk.submit(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        clerk.submit(lambda: done.append(1))
        assert clerk.wait(give_up=lambda: False)
    assert done == [1]
    assert "clerk: what was asked for failed" in caplog.text


def test_the_thread_ends_when_it_has_done_what_it_was_asked_for() -> None:
    clerk, done = Clerk("short"), threading.Event()
    clerk.start()
    thread = next(one for one in threading.enumerate() if one.name == "short")
    clerk.submit(done.set)
    clerk.stop()
    thread.join(60)
    assert (thread.is_alive(), done.is_set()) == (False, True)
