"""A rank whose driver is silent for too long, or whose starter is gone, ends: before it says another word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.waiting import wait_until
from workers import watchdog
from workers.watchdog import EXIT_CODE, Watchdog, reason_to_end


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def watched(lease: float = 60.0) -> tuple[Watchdog, Clock, list[str]]:
    clock, ended = Clock(), []
    return Watchdog(lease, clock=clock, end=ended.append), clock, ended


@pytest.mark.parametrize(("silent", "lives"), [(0.0, True), (60.0, True), (60.1, False)])
def test_the_lease_is_over_when_the_driver_was_silent_for_longer(silent: float, lives: bool) -> None:
    assert (reason_to_end(silent=silent, lease=60.0, parent=7, parent_then=7) is None) is lives


def test_a_word_of_the_driver_renews_the_lease() -> None:
    dog, clock, ended = watched()
    for _ in range(5):
        clock.time += 50.0
        dog.hear()
    assert ended == []


def test_a_word_that_waited_in_the_wire_renews_nothing() -> None:
    dog, clock, ended = watched()
    clock.time += 61.0
    dog.hear()
    assert ended == ["its driver has been silent for 61 s, the lease is 60 s"]


def test_who_speaks_after_the_lease_is_ended_first() -> None:
    dog, clock, ended = watched()
    dog.check()
    clock.time += 61.0
    assert ended == []
    dog.check()
    assert len(ended) == 1


def test_a_changed_parent_ends_it_though_the_driver_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    dog, _, ended = watched()
    parent = os.getppid()
    monkeypatch.setattr(watchdog.os, "getppid", lambda: 1)
    dog.hear()
    assert ended == [f"the process that started it (pid {parent}) is gone"]


RANK = """
import sys, threading
from workers.watchdog import Watchdog

dog = Watchdog(float(sys.argv[1]))
dog.start()
print("up", flush=True)
for line in sys.stdin:
    dog.hear()
    print("heard", flush=True)
threading.Event().wait()
"""

STARTER = """
import subprocess, sys

rank = subprocess.Popen([sys.executable, "-c", sys.argv[1], "600"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
rank.stdout.readline()
print(rank.pid, flush=True)
sys.stdin.read()
"""


def test_a_silent_driver_ends_the_process_with_the_documented_code() -> None:
    rank = subprocess.Popen([sys.executable, "-c", RANK, "0.5"], stdin=-1, stdout=-1, stderr=-1, text=True)
    _, said = rank.communicate(timeout=30)
    assert rank.returncode == EXIT_CODE == 75
    assert "rankfire: this rank ends: its driver has been silent for" in said


def test_a_process_that_was_stopped_beyond_its_lease_says_nothing_when_it_wakes() -> None:
    rank = subprocess.Popen([sys.executable, "-c", RANK, "1"], stdin=-1, stdout=-1, stderr=-1, text=True, bufsize=1)
    assert rank.stdin is not None
    assert rank.stdout is not None
    assert rank.stdout.readline() == "up\n"
    rank.stdin.write("one\n")
    assert rank.stdout.readline() == "heard\n"
    rank.send_signal(signal.SIGSTOP)
    rank.stdin.write("two\n")  # it waits in the pipe, as a beat does in the wire
    stopped = watchdog.now()
    wait_until(lambda: watchdog.now() - stopped > 1.1, what="the end of the lease")
    rank.send_signal(signal.SIGCONT)
    rest, _ = rank.communicate(timeout=30)
    assert (rest, rank.returncode) == ("", EXIT_CODE)


def test_an_orphan_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", STARTER, RANK], stdin=-1, stdout=-1, text=True) as starter:
        assert starter.stdout is not None
        orphan = psutil.Process(int(starter.stdout.readline()))
        assert orphan.ppid() == starter.pid
        starter.kill()
    assert psutil.wait_procs([orphan], timeout=30)[1] == []
