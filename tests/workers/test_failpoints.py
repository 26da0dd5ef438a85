"""Places at which a test can make a process fail: how they are armed, and when they are due."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers import failpoints
from workers.failpoints import POINTS, TRACE, VARIABLE, Armed, FailpointError, arm, armed, failpoint, parse


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm("")


def hits(name: str, times: int, rank: int | None = None) -> list[int]:
    """At which coming by it failed."""
    failed = []
    for number in range(1, times + 1):
        try:
            failpoint(name, rank)
        except (FailpointError, OSError):
            failed.append(number)
    return failed


def test_what_is_not_armed_does_nothing() -> None:
    assert (hits("commit.done", 3), armed("commit.done")) == ([], False)
    arm("commit.named=raise")
    assert (hits("commit.done", 3), armed("commit.named")) == ([], True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("commit.done=raise", [1]),
        ("commit.done=raise#3", [3]),
        ("commit.done=enospc", [1, 2, 3, 4, 5]),
        ("commit.done=enospc#4", [4, 5]),
        ("commit.done=eio:2", [1, 2]),
        ("commit.done=eio:2#3", [3, 4]),
    ],
)
def test_a_point_fails_when_it_is_due(text: str, expected: list[int]) -> None:
    arm(text)
    assert hits("commit.done", 5) == expected


def test_a_point_fails_in_the_rank_that_is_meant() -> None:
    arm("shard.half=raise@1#2")
    assert hits("shard.half", 3, rank=0) == hits("shard.half", 3, rank=None) == []
    assert hits("shard.half", 3, rank=1) == [2]


def test_a_point_can_fail_in_the_first_process_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(TRACE, str(tmp_path / "trace"))
    arm("shard.half=raise#2!")
    assert hits("shard.half", 3) == [2]
    arm("shard.half=raise#2!")  # as the process that takes its place does
    assert hits("shard.half", 3) == []
    assert (tmp_path / "trace").read_text() == "shard.half raise driver\n"


def test_several_are_armed_at_once_and_the_next_text_disarms_them() -> None:
    arm(" commit.done=raise ; ;commit.named=eio:1; ")
    assert (hits("commit.done", 1), hits("commit.named", 1)) == ([1], [1])
    arm("commit.named=raise")
    assert (hits("commit.done", 1), hits("commit.named", 1)) == ([], [1])


def test_errors_are_those_of_the_system() -> None:
    for action, number in (("enospc", errno.ENOSPC), ("eio", errno.EIO)):
        arm(f"commit.done={action}")
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            failpoint("commit.done")
        assert (caught.value.errno, caught.value.filename) == (number, "failpoint commit.done")
    arm("commit.done=raise")
    with pytest.raises(FailpointError, match=r"^failpoint commit\.done$"):
        failpoint("commit.done")


def test_a_point_can_make_a_process_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(failpoints.time, "sleep", slept.append)
    arm("lease.renewed=sleep:0.5")
    assert (hits("lease.renewed", 2), slept) == ([], [0.5])


def test_every_hit_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACE, str(tmp_path / "trace"))
    arm("commit.done=raise#2; shard.half=eio:2@1")
    hits("commit.done", 3)
    hits("shard.half", 3, rank=1)
    assert (tmp_path / "trace").read_text() == "commit.done raise driver\nshard.half eio 1\nshard.half eio 1\n"


def test_a_text_is_read_with_all_its_parts() -> None:
    assert parse("shard.half=eio:2@1#3; commit.done=kill") == {
        "shard.half": Armed(action="eio", value=2.0, rank=1, hit=3),
        "commit.done": Armed(action="kill"),
    }
    assert parse("") == parse(" ; ") == {}


@pytest.mark.parametrize(
    "text",
    ["commit.done", "commit.done=", "commit.done=explode", "commit.don=kill", "=kill", "a b"]
    + [f"commit.done={wrong}" for wrong in ("kill#0", "kill#01", "sleep:.", "sleep:1.2.3", "sleep:.5", "sleep:1.")],
)
def test_a_text_that_can_not_be_read_is_refused_with_all_that_can(text: str) -> None:
    with pytest.raises(ValueError, match=rf"^{VARIABLE}: expected name=action.* received {text!r}$") as caught:
        arm(text)
    assert all(name in str(caught.value) for name in POINTS)


def test_a_point_that_nobody_knows_is_a_mistake_of_ours() -> None:
    arm("commit.done=raise")
    with pytest.raises(AssertionError, match=r"^failpoint 'commit\.dome' is not in POINTS$"):
        failpoint("commit.dome")


@pytest.mark.parametrize(("action", "code"), [("kill", -signal.SIGKILL), ("exit", 70), ("stop", -signal.SIGKILL)])
def test_a_process_is_armed_by_its_environment(tmp_path: Path, action: str, code: int) -> None:
    code_text = "from workers.failpoints import failpoint; failpoint('commit.done'); print('went on')"
    environment = {**os.environ, VARIABLE: f"commit.done={action}", TRACE: str(tmp_path / "trace"), "PYTHONPATH": "."}
    with subprocess.Popen([sys.executable, "-c", code_text], env=environment, stdout=subprocess.PIPE) as process:
        if action == "stop":
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            process.kill()
        output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (code, b"")
    assert (tmp_path / "trace").read_text() == f"commit.done {action} driver\n"
