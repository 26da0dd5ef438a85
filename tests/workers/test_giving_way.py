"""A process that starts while others train runs at the lowest priority, and comes back from it whole."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.waiting import wait_until
from workers.giving_way import GivingWay, _returns

pytestmark = pytest.mark.skipif(not _returns(), reason="a process that gave way here would not get its priority back")


def apart(act: Callable[[], object]) -> None:
    """In a thread of its own: that of the tests keeps its priority, whatever happens."""
    with ThreadPoolExecutor(1) as threads:
        threads.submit(act).result()


def priority(thread: int = 0) -> int:
    return os.sched_getscheduler(thread)


def test_a_thread_and_what_it_starts_give_way_until_the_end_and_others_do_not() -> None:
    def check() -> None:
        giving = GivingWay()
        giving.begin()
        assert priority() == os.SCHED_IDLE
        assert priority(threading.main_thread().native_id or 0) == os.SCHED_OTHER
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
            assert priority(child.pid) == os.SCHED_IDLE
            giving.end()
            assert (priority(), priority(child.pid)) == (os.SCHED_OTHER, os.SCHED_OTHER)
            child.communicate(b"\n")

    apart(check)


def test_a_thread_that_joins_gives_way_only_while_it_lasts() -> None:
    giving = GivingWay()
    apart(lambda: (giving.join(), None if priority() == os.SCHED_OTHER else pytest.fail("it has not begun")))

    def check() -> None:
        giving.begin()
        apart(lambda: (giving.join(), None if priority() == os.SCHED_IDLE else pytest.fail("it has begun")))
        giving.end()
        apart(lambda: (giving.join(), None if priority() == os.SCHED_OTHER else pytest.fail("it has ended")))

    apart(check)


def test_it_ends_by_itself() -> None:
    def check() -> None:
        GivingWay(seconds=0.01).begin()
        wait_until(lambda: priority() == os.SCHED_OTHER, what="the end of giving way", timeout=30)

    apart(check)


def test_where_there_is_no_way_back_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.sched_setscheduler

    def refuse(thread: int, policy: int, param: os.sched_param) -> None:
        if policy == os.SCHED_OTHER:
            raise PermissionError("not allowed")
        real(thread, policy, param)

    def check() -> None:
        monkeypatch.setattr(os, "sched_setscheduler", refuse)
        giving = GivingWay()
        giving.begin()
        assert priority() == os.SCHED_OTHER
        giving.end()

    apart(check)
