"""Waiting for a condition in a test: the one place of the suite where something is polled.

A test never sleeps for a time that somebody guessed. It names what it waits for and gives a deadline; when
the deadline passes, the failure says what did not happen and where every thread of this process was.
"""

from __future__ import annotations

import faulthandler
import tempfile
import threading
import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


def wait_until(
    condition: Callable[[], Answer], timeout: float = 10.0, what: str = "", interval: float = 0.02
) -> Answer:
    """Call `condition` until its answer is true, and return that answer.

    Args:
        condition: Asked again and again from the calling thread; an exception that it raises ends the wait.
        timeout: Seconds until the wait fails.
        what: What is waited for, for the message; by default the condition's own name.
        interval: Seconds between two questions.

    Raises:
        AssertionError: The deadline passed; the message holds the stacks of all threads.

    Example:
        >>> wait_until(lambda: 2 + 2 == 4, timeout=1, what="arithmetic")
        True
    """
    pause = threading.Event()
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            wanted = what or getattr(condition, "__qualname__", repr(condition))
            raise AssertionError(f"not within {timeout:g} s: {wanted}\n{thread_stacks()}")
        pause.wait(interval)


def expect_none(look: Callable[[], list[str]], title: str, timeout: float = 10.0) -> None:
    """Wait until `look()` finds nothing; otherwise fail and list what it finds, and where our threads are."""
    try:
        wait_until(lambda: not look(), timeout, title, interval=0.1)
    except AssertionError as late:
        raise AssertionError("\n  ".join([f"{title}:", *look()]) + f"\n{late}") from None


def thread_stacks() -> str:
    """The Python stacks of all threads of this process, as faulthandler prints them."""
    with tempfile.TemporaryFile("w+") as stacks:
        faulthandler.dump_traceback(file=stacks, all_threads=True)
        stacks.seek(0)
        return stacks.read()
