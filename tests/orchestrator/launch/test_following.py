"""Waiting for a job's end: its exit code may come a moment later, and may never come."""

from collections.abc import Callable

import pytest

from orchestrator.launch import following
from orchestrator.launch.following import until_ended
from orchestrator.launch.jobs import Job


class Told:
    """A cluster that answers as it is told."""

    def __init__(self, *answers: tuple[str, int | None]) -> None:
        self.answers = list(answers)

    def get(self, job_id: str) -> Job:
        status, code = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return Job(id=job_id, status=status, code=code, metadata={})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PAUSE", 0.0)
    monkeypatch.setattr(following, "LATE", 0.05)


def ended(*answers: tuple[str, int | None], timeout: float | None = None) -> Job | None:
    wait: Callable[..., Job | None] = until_ended
    return wait(Told(*answers), "x", timeout=timeout)


def test_an_exit_code_that_comes_late_is_waited_for() -> None:
    job = ended(("RUNNING", None), ("FAILED", None), ("FAILED", 2))
    assert job is not None
    assert (job.status, job.code) == ("FAILED", 2)


@pytest.mark.parametrize(("status", "timeout"), [("FAILED", None), ("FAILED", 600.0), ("STOPPED", 600.0)])
def test_one_that_never_comes_is_not(status: str, timeout: float | None) -> None:
    job = ended(("RUNNING", None), (status, None), timeout=timeout)
    assert job is not None
    assert job.status == status


def test_a_job_that_goes_on_is_given_up_after_the_time() -> None:
    assert ended(("RUNNING", None), timeout=0.0) is None
