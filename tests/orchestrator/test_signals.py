"""Ctrl-C and SIGTERM: what the first, the second and the third do, and when none of them may do anything."""

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.exchange import Interrupt
from orchestrator.signals import Signals, StopNow
from tests.orchestrator.fake_group import FakeGroup

PRESS = {signal.SIGINT: "press Ctrl-C again", signal.SIGTERM: "send SIGTERM again"}


def press(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture
def dead_stderr() -> Iterator[None]:
    """Standard error is a pipe whose reader has gone."""
    kept, (reader, writer) = os.dup(2), os.pipe()
    os.close(reader)
    os.dup2(writer, 2)
    os.close(writer)
    yield
    os.dup2(kept, 2)
    os.close(kept)


@pytest.mark.parametrize("number", PRESS)
def test_the_first_asks_the_run_to_stop_and_says_what_the_next_does(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    group = FakeGroup()
    with Signals(group):
        press(number)
    assert list(group.inbox) == [Interrupt()]
    assert capfd.readouterr().err == f"\nrankfire: stopping at the next iteration; {PRESS[number]} to stop now\n"


def test_the_first_is_heard_though_nobody_reads_standard_error(dead_stderr: None) -> None:
    group = FakeGroup()
    with Signals(group):
        press()
    assert list(group.inbox) == [Interrupt()]


def test_the_second_stops_now_and_more_change_nothing() -> None:
    group = FakeGroup()
    with Signals(group):
        press()
        with pytest.raises(StopNow):
            press(signal.SIGTERM)
        press()
    assert list(group.inbox) == [Interrupt()]


def test_the_first_stops_a_start_now() -> None:
    group = FakeGroup()
    with Signals(group, starting=lambda: True), pytest.raises(StopNow):
        press()
    assert list(group.inbox) == [Interrupt()]


def test_a_start_that_does_not_come_back_to_python_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.signals.DEAF", 0.05)
    gate, left = tmp_path / "gate", []
    os.mkfifo(gate)

    def leave() -> None:
        left.append(threading.current_thread().name)
        gate.write_text("")

    with Signals(FakeGroup(), starting=lambda: True, leave=leave), pytest.raises(StopNow):
        ctypes.CDLL(None).system(f"kill -TERM {os.getpid()}; cat {gate}".encode())
    assert left == ["rankfire-signals"]


def test_while_the_workers_are_ended_none_does_anything() -> None:
    group = FakeGroup()
    with Signals(group) as signals:
        press()
        signals.stopping()
        press()
    assert list(group.inbox) == [Interrupt()]


def test_afterwards_signals_are_what_they_were() -> None:
    before = [signal.getsignal(number) for number in PRESS]
    with Signals(FakeGroup()):
        assert [signal.getsignal(number) for number in PRESS] != before
    assert [signal.getsignal(number) for number in PRESS] == before
    assert signal.set_wakeup_fd(-1) == -1
