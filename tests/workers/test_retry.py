"""Which errors of a storage are tried again, how often, and after how long."""

import errno
import logging
from typing import Any

import pytest

from workers.retry import DELAYS, is_transient, retrying


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr("workers.retry.time.sleep", slept.append)
    return slept


class Stumbling:
    def __init__(self, *errors: OSError) -> None:
        self.errors = list(errors)

    def __call__(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def error(number: int) -> OSError:
    return OSError(number, "told")


PASSES = [
    errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED,
    errno.ECONNREFUSED, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EREMOTEIO, errno.EBUSY,
]  # fmt: skip
STAYS = [
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EEXIST,
    errno.ENOTDIR, errno.EINVAL, errno.EREMOTE,
]  # fmt: skip


@pytest.mark.parametrize("number", PASSES, ids=errno.errorcode.get)
def test_what_may_pass_is_tried_again(slept: list[float], number: int) -> None:
    assert retrying("write", Stumbling(error(number))) == "done"
    assert slept == [DELAYS[0]]


@pytest.mark.parametrize("number", STAYS, ids=errno.errorcode.get)
def test_what_stays_is_told_at_once(slept: list[float], number: int) -> None:
    with pytest.raises(OSError, match="told"):
        retrying("write", Stumbling(error(number)))
    assert slept == []


@pytest.mark.parametrize("kind", [TimeoutError, ConnectionError, ConnectionResetError, BrokenPipeError])
def test_a_lost_connection_may_pass_though_it_has_no_number(kind: type[OSError]) -> None:
    assert is_transient(kind("no answer"))
    assert not is_transient(OSError("no number"))


def test_the_last_try_tells_its_own_error(slept: list[float], caplog: pytest.LogCaptureFixture) -> None:
    tries: list[Any] = [OSError(errno.EIO, f"number {number}") for number in range(1, 6)]
    with caplog.at_level(logging.WARNING), pytest.raises(OSError, match="number 4"):
        retrying("write the index", Stumbling(*tries))
    assert slept == list(DELAYS) == [0.1, 0.5, 2.5]
    assert caplog.messages[0] == "write the index: try 1 failed, another follows in 0.1 s: [Errno 5] number 1"
    assert len(caplog.messages) == 3


def test_an_error_that_stays_after_one_that_passed_is_told(slept: list[float]) -> None:
    with pytest.raises(OSError, match="told") as caught:
        retrying("write", Stumbling(error(errno.EIO), error(errno.ENOSPC)))
    assert caught.value.errno == errno.ENOSPC


def test_what_is_no_error_of_the_system_is_never_tried_again(slept: list[float]) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        retrying("write", broken)
    assert slept == []
