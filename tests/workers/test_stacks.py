"""Stacks from outside: of a process that sleeps, one that holds the GIL, one that is stopped; words for the rest."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.waiting import wait_until
from workers import stacks
from workers.stacks import stacks_of, stacks_of_all, state_of

STANDS = """
import ctypes, sys, threading
from workers.stacks import offer

if sys.argv[2] == "offers":
    offer()

def sleeps_well():
    threading.Event().wait()

def holds_the_gil():
    while True:  # a signal ends one sleep
        ctypes.PyDLL(None).sleep(600)

print("up", flush=True)
{"sleep": sleeps_well, "hold": holds_the_gil}[sys.argv[1]]()
"""


@contextlib.contextmanager
def standing(where: str = "sleep", offers: str = "offers") -> Iterator[int]:
    """A process that stands somewhere; its id."""
    with subprocess.Popen([sys.executable, "-c", STANDS, where, offers], stdout=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        wait_until(lambda: state_of(process.pid) == "S", what="its sleep")
        yield process.pid
        process.kill()


@pytest.fixture
def without_spy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where py-spy is missing, or not permitted to read others."""
    monkeypatch.setattr(stacks, "_spied", lambda pid, stopped: None)


@pytest.mark.parametrize(("where", "function"), [("sleep", "sleeps_well"), ("hold", "holds_the_gil")])
def test_the_function_is_named_that_sleeps_or_holds_the_gil(where: str, function: str) -> None:
    with standing(where) as pid:
        assert function in stacks_of(pid)


def test_the_function_of_a_stopped_process_is_named_and_it_stays_stopped() -> None:
    with standing() as pid:
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: state_of(pid) == "T", what="the stop")
        assert "sleeps_well" in stacks_of(pid)
        assert state_of(pid) == "T"


@pytest.mark.usefixtures("without_spy")
@pytest.mark.parametrize(("where", "function"), [("sleep", "sleeps_well"), ("hold", "holds_the_gil")])
def test_without_py_spy_the_process_writes_them_itself_each_time_anew(where: str, function: str) -> None:
    with standing(where) as pid:
        for _ in range(2):
            assert stacks_of(pid).count(function) == 1


@pytest.mark.usefixtures("without_spy")
def test_without_py_spy_a_stopped_process_is_told_in_words() -> None:
    with standing() as pid:
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: state_of(pid) == "T", what="the stop")
        assert stacks_of(pid) == (
            f"no stacks of pid {pid}: it is stopped (SIGSTOP), and py-spy is missing or not permitted to read it"
        )


@pytest.mark.usefixtures("without_spy")
def test_a_process_that_does_not_listen_is_not_ended_by_the_question() -> None:
    with standing(offers="nothing") as pid:
        assert stacks_of(pid).startswith(f"no stacks of pid {pid}: it does not answer")
        assert state_of(pid) == "S"


def test_a_process_that_is_gone_is_told_in_words() -> None:
    with standing() as pid:
        pass
    assert stacks_of(pid) == f"no stacks of pid {pid}: it is gone"


def test_several_are_looked_at_at_once() -> None:
    with standing("sleep") as one, standing("hold") as other:
        seen = stacks_of_all([one, other])
    assert "sleeps_well" in seen[one]
    assert "holds_the_gil" in seen[other]
