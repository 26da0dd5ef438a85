"""A storage that is slow, or never comes back from a write: told with rank and file, and nobody waits for ever."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import RunInterrupted
from tests.recovery.jobs import PER_EPOCH, Job, checkpoints_hold, run

FOR_EVER = 10_000  # seconds
HANGS = {"hang_timeout": 2.0}
WORDS = r"was given up: rank 1 has not come on for [5-9] s with data/__1_0\.distcp, of which it has \d+ bytes"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A save is given up after five seconds."""
    monkeypatch.setattr("orchestrator.timeouts.AWAY", 5.0)


def job(seconds: float, **options: Any) -> Job:
    """The second save of rank 1 hangs for so long, as by a server that is away."""
    return Job(points=f"shard.half=sleep:{seconds:g}@1#2!", recovery=HANGS, **options)


def saved(ended: Any) -> list[int]:
    """The iterations of the checkpoints that there are."""
    return [one.manifest.iteration for one in ended.registry.committed()]


def test_training_goes_on_and_ends_without_what_could_not_be_saved(tmp_path: Path, calm: Any) -> None:
    hangs = job(FOR_EVER, on_save_error="continue")
    ended = run(hangs, tmp_path / "job")
    assert ended.error is None
    assert ended.fired == ["shard.half sleep 1"]
    first, *later = [line["text"] for line in ended.told("CHECKPOINT_FAILED")]
    assert first.startswith(f"checkpoint step-{2 * PER_EPOCH:08d}.attempt-")
    assert re.search(WORDS, first)
    assert later  # the next one that was due, and the one at the end
    assert all("rank 1: TimeoutError: the storage still holds on to data/__1_0.distcp" in text for text in later)
    assert ended.digests == calm(hangs).digests
    assert (ended.told("WORKER_LOST"), ended.told("HANG_DETECTED")) == ([], [])
    assert saved(ended) == [PER_EPOCH]
    checkpoints_hold(ended)


def test_a_storage_that_comes_back_is_written_to_again(tmp_path: Path) -> None:
    """What it was held up with stays given up; the next save goes well."""

    def wait(orchestrator: Any, group: Any) -> None:
        driver = orchestrator._run
        while not driver.saver.idle or any(pulse.writing is not None for pulse in driver.loop.pulses.values()):
            driver.loop.pump(timeout=0.1)

    ended = run(job(7.0, on_save_error="continue", at_gate={3: wait}), tmp_path / "job")
    assert ended.error is None
    assert ended.fired == ["shard.half sleep 1"]
    (told,) = [line["text"] for line in ended.told("CHECKPOINT_FAILED")]
    assert re.search(WORDS, told)
    assert saved(ended) == [PER_EPOCH, 3 * PER_EPOCH]
    checkpoints_hold(ended, 3 * PER_EPOCH)


def test_sigterm_is_heard_while_the_storage_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training stops soon, the slow save comes to its end, and where training stands is saved as well."""
    at: list[int] = []

    def terminate(orchestrator: Any, group: Any, iteration: int) -> None:
        if not at and (tmp_path / "job" / "trace").exists():  # the second save is being written
            assert not orchestrator._run.saver.idle
            at.append(iteration)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("orchestrator.timeouts.AWAY", 60.0)
    slow = Job(points="shard.half=sleep:8@1#2!", epochs=10_000, at_iteration=terminate)
    ended = run(slow, tmp_path / "job")
    assert isinstance(ended.error, RunInterrupted)
    assert ended.fired == ["shard.half sleep 1"]
    assert ended.told("CHECKPOINT_FAILED") == []
    *_, before, last = saved(ended)
    assert before == 2 * PER_EPOCH
    assert at[0] <= last <= at[0] + 2 * PER_EPOCH  # and not as far as ranks come in eight seconds
    checkpoints_hold(ended, last)
