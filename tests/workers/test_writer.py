"""The thread that writes a share: it always tells, one share at a time."""

import errno
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_until
from workers.parcels import Failure, Writing
from workers.shards import Written
from workers.storage import Storage
from workers.writer import ShardWriter

WRITTEN = Written(receipts=(), results=[])


class Share:
    """What `Frozen` is to the writer."""

    def __init__(self, *errors: BaseException, hold: threading.Event | None = None) -> None:
        self.errors = list(errors)
        self.hold = hold
        self.places: list[str] = []
        self.threads: list[str] = []

    def write(self, storage: Storage) -> Written:
        self.places.append(storage.url)
        self.threads.append(threading.current_thread().name)
        if self.hold is not None:
            assert self.hold.wait(30)
        if self.errors:
            raise self.errors.pop(0)
        return WRITTEN


@pytest.fixture
def told() -> list[tuple[str, Written | None, Failure | None]]:
    return []


@pytest.fixture
def writer(told: list[Any], monkeypatch: pytest.MonkeyPatch) -> ShardWriter:
    monkeypatch.setattr("workers.retry.time.sleep", lambda seconds: None)
    return ShardWriter(lambda *words: told.append(words))


def write(writer: ShardWriter, share: Any, url: str) -> None:
    writer.start(share, url)
    writer.join(30)


def test_a_share_is_written_on_a_thread_of_its_own_and_told(
    writer: ShardWriter, told: list[Any], tmp_path: Path
) -> None:
    share = Share()
    write(writer, share, str(tmp_path))
    assert told == [(str(tmp_path), WRITTEN, None)]
    assert (share.places, share.threads) == ([str(tmp_path)], ["rankfire-save"])


@pytest.mark.parametrize(("times", "written"), [(2, WRITTEN), (4, None)])
def test_a_storage_that_stumbles_is_asked_again(
    writer: ShardWriter, told: list[Any], tmp_path: Path, times: int, written: Written | None
) -> None:
    share = Share(*[OSError(errno.EIO, "stumbled")] * times)
    write(writer, share, str(tmp_path))
    ((_, found, failure),) = told
    assert (found, len(share.places)) == (written, min(times + 1, 4))
    assert str(failure) == ("None" if written else "OSError: [Errno 5] stumbled")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), ValueError("a bug of ours"), SystemExit(3)])
def test_whatever_goes_wrong_is_told_at_once(
    writer: ShardWriter, told: list[Any], tmp_path: Path, error: BaseException
) -> None:
    share = Share(error)
    write(writer, share, str(tmp_path))
    ((_, written, failure),) = told
    assert (written, str(failure), len(share.places)) == (None, f"{type(error).__name__}: {error}", 1)
    assert "in write" in failure.traceback


def test_a_place_that_nobody_knows_is_told(writer: ShardWriter, told: list[Any]) -> None:
    write(writer, Share(), "nope://bucket")
    assert told[0][2].type_name == "ValueError"


def test_to_start_is_to_return_at_once_and_the_next_share_waits(
    writer: ShardWriter, told: list[Any], tmp_path: Path
) -> None:
    hold = threading.Event()
    first, second = Share(hold=hold), Share()
    writer.start(first, str(tmp_path / "first"))
    wait_until(lambda: first.places, what="the first share")
    assert told == []
    starter = threading.Thread(target=writer.start, args=(second, str(tmp_path / "second")))
    starter.start()
    writer.join(0.0)
    assert second.places == []
    hold.set()
    starter.join(30)
    writer.join(30)
    assert [Path(url).name for url, _, _ in told] == ["first", "second"]


def test_how_far_it_is_can_be_seen_from_outside(writer: ShardWriter, told: list[Any], tmp_path: Path) -> None:
    class Slow(Share):
        def write(self, storage: Storage) -> Written:
            with storage.create("data/x") as file:
                file.write(b"123")
                return super().write(storage)

    hold = threading.Event()
    share: Any = Slow(hold=hold)
    assert writer.writing is None
    writer.start(share, str(tmp_path))
    wait_until(lambda: share.places, what="the share")
    assert writer.writing == Writing(path="data/x", bytes=3)
    assert (writer.held_by(str(tmp_path)), writer.held_by("another")) == (True, False)
    hold.set()
    writer.join(30)
    assert (writer.writing, writer.held_by(str(tmp_path)), len(told)) == (None, False, 1)
    assert (tmp_path / "data/x").read_bytes() == b"123"


def test_there_is_nothing_to_wait_for_before_the_first_share(writer: ShardWriter) -> None:
    writer.join()
