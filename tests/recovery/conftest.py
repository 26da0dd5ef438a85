"""Fixtures of the recovery tests: jobs over plain processes, and the calm runs with which they are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.leftovers import Footprint, left_since
from tests.recovery.jobs import Ended, Job, promises, run
from tests.waiting import expect_none

Survives = Callable[..., Ended]


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Job], Ended]:
    """What comes of a job to which nothing happens; each is run once."""
    known: dict[str, Ended] = {}

    def of(job: Job) -> Ended:
        if job.key not in known:
            known[job.key] = run(job.calm(), tmp_path_factory.mktemp("calm") / "job")
            assert known[job.key].error is None
        return known[job.key]

    return of


@pytest.fixture(autouse=True)
def nothing_left_by_any(private_root: Path) -> Iterator[None]:
    """After each test, not only after the module: whatever the fault was, it left nothing."""
    before = Footprint.now(private_root / "tmp")
    yield
    expect_none(lambda: left_since(before, private_root / "tmp"), "the run left behind")


@pytest.fixture
def survives(calm: Callable[[Job], Ended], tmp_path: Path) -> Survives:
    """Run a job, see that these faults struck, and that all promises were kept."""

    def check(job: Job, *, fired: Sequence[str], lost: Sequence[int] | None) -> Ended:
        quiet = calm(job)
        ended = run(job, tmp_path / "job")
        assert ended.error is None, getattr(ended.error, "traceback", ended.error)
        assert ended.fired == list(fired)
        promises(job, ended, quiet, lost)
        return ended

    return check
