"""The run's record: what a line holds, and what is left of it after a power cut, a full disk, or another owner."""

import errno
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import journal as module
from orchestrator.cluster_events import ClusterEvents, Recovered, WorkerLost
from orchestrator.errors import FencedError
from orchestrator.journal import Journal, read_journal
from workers import failpoints
from workers.folder import Folder
from workers.locations import storage_at
from workers.storage import Storage


@pytest.fixture
def journal(storage: Storage) -> Iterator[Journal]:
    if storage.moves:
        storage.make_folder("")
    journal = Journal(storage)
    yield journal
    journal.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def lines(storage: Storage) -> list[dict[str, Any]]:
    return list(read_journal(storage.locate("journal.jsonl")))


def events(storage: Storage) -> list[str]:
    return [line["event"] for line in lines(storage)]


# ---------------------------------------------------------------- on every storage
def test_every_line_tells_event_time_generation_epoch_and_iteration(journal: Journal, storage: Storage) -> None:
    journal.start(1)
    journal.epoch, journal.iteration = 2, 200
    journal.write("WORKER_JOINED", rank=1, pid=77, node="n")
    (line,) = lines(storage)
    assert line.pop("time") > 1.7e9
    assert line == {
        "event": "WORKER_JOINED", "generation": 0, "epoch": 2, "iteration": 200, "rank": 1, "pid": 77, "node": "n",
    }  # fmt: skip


def test_what_happens_to_the_cluster_is_a_line_with_all_that_handlers_are_told(
    journal: Journal, storage: Storage
) -> None:
    journal.start(1)
    journal.iteration = 9
    lost = WorkerLost(rank=1, cause="crash", text="it is gone", pid=7, node="a", host="h")
    journal.record(lost)
    journal.record(replace(lost, rank=None))
    journal.record(
        Recovered(
            ranks=(1,), causes=("crash",), seconds=0.5, iteration=6, replayed=3, source="snapshot", world_size=2,
            generation=1,
        )
    )  # fmt: skip
    journal.close()
    first, spare, recovered = lines(storage)
    assert (first["event"], spare["event"], recovered["event"]) == ("WORKER_LOST", "SPARE_LOST", "RECOVERED")
    assert (first["cause"], first["text"], first["iteration"]) == ("crash", "it is gone", 9)
    assert (recovered["iteration"], recovered["replayed"], recovered["generation"]) == (6, 3, 1)
    assert (recovered["ranks"], recovered["causes"]) == ([1], ["crash"])


def test_lines_stay_in_the_order_in_which_they_were_written_over_owners(journal: Journal, storage: Storage) -> None:
    for token in range(1, 4):
        journal.start(token)
        for number in range(3):
            journal.write("NOTE", number=10 * token + number)
        journal.close()
    assert [line["number"] for line in lines(storage)] == [10, 11, 12, 20, 21, 22, 30, 31, 32]


def test_a_long_journal_has_all_its_lines(journal: Journal, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT", 500)
    journal.start(7)
    for number in range(20):
        journal.write("NOTE", number=number)
    assert [line["number"] for line in lines(storage)] == list(range(20))
    segments = [] if storage.moves else storage.names("journal")
    assert len(segments) == (0 if storage.moves else 4)
    assert segments == [f"00000007-{number:06d}.jsonl" for number in range(len(segments))]


def test_values_that_json_does_not_know_become_their_names(journal: Journal, storage: Storage) -> None:
    journal.start()
    value = {"loss": float("nan"), "best": [float("inf"), -float("inf"), (1, None, True)], 3: Path("a")}
    journal.write("NOTE", value=value)
    (line,) = lines(storage)
    assert json.dumps(line, allow_nan=False)
    assert line["value"] == {"loss": "nan", "best": ["inf", "-inf", [1, None, True]], "3": "a"}


def test_a_journal_that_was_not_started_writes_nothing(journal: Journal, storage: Storage) -> None:
    journal.write("NOTE")
    with pytest.raises(FileNotFoundError):
        lines(storage)


def test_closing_twice_is_closing_once(journal: Journal, storage: Storage) -> None:
    journal.start()
    journal.write("NOTE")
    journal.close()
    journal.close()
    journal.write("LATE")
    assert events(storage) == ["NOTE"]


class Owned:
    """What the lease says."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __call__(self) -> None:
        if self.error is not None:
            raise self.error


def test_who_does_not_own_the_run_any_more_writes_nothing(storage: Storage) -> None:
    if storage.moves:
        storage.make_folder("")
    owned = Owned()
    journal = Journal(storage, owned)
    journal.start(1)
    journal.write("MINE")
    owned.error = FencedError.by("r", "another")
    with pytest.raises(FencedError):
        journal.write("NOT MINE")
    with pytest.raises(FencedError):
        journal.close()
    assert events(storage) == ["MINE"]
    journal.close()


def test_lines_wait_while_nobody_can_tell_who_owns_the_run(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    if storage.moves:
        storage.make_folder("")
    owned = Owned()
    journal = Journal(storage, owned)
    journal.start(1)
    owned.error = OSError(errno.ETIMEDOUT, "no answer")
    journal.write("FIRST")
    journal.write("SECOND")
    owned.error = None
    journal.write("THIRD")
    journal.close()
    assert events(storage) == ["FIRST", "SECOND", "THIRD"]
    told = "rankfire: the journal can't be written: no answer; its lines are kept for later\n"
    assert capsys.readouterr().err == told


def test_what_was_held_is_not_written_by_who_lost_the_run_meanwhile(storage: Storage) -> None:
    if storage.moves:
        storage.make_folder("")
    owned = Owned()
    journal = Journal(storage, owned)
    journal.start(1)
    journal.write("MINE")
    owned.error = OSError(errno.ETIMEDOUT, "no answer")
    journal.write("HELD")
    owned.error = FencedError.by("r", "another")
    with pytest.raises(FencedError):
        journal.close()
    assert events(storage) == ["MINE"]


def test_what_the_storage_refuses_is_written_when_it_does_not_any_more(
    journal: Journal, storage: Storage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "HELD", 3)
    journal.start(1)
    journal.write("FIRST")

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse) if storage.moves else patch.setattr(type(storage), "replace", refuse)
        for number in range(5):
            journal.write("HELD", number=number)
    assert events(storage) == ["FIRST"]
    assert capsys.readouterr().err.count("can't be written: No space left on device") == 1
    journal.write("LAST")
    assert [line.get("number") for line in lines(storage)] == [None, 2, 3, 4, None]
    journal.close()
    assert "rankfire: 2 of the journal's lines are lost: its storage did not take them\n" in capsys.readouterr().err


def test_lines_that_the_storage_never_took_are_counted_at_the_end(
    journal: Journal, storage: Storage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    journal.start(1)

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse) if storage.moves else patch.setattr(type(storage), "replace", refuse)
        journal.write("ONE")
        journal.write("TWO")
        journal.close()
    assert "rankfire: 2 of the journal's lines are lost: its storage did not take them\n" in capsys.readouterr().err


def test_a_journal_that_can_not_be_synced_is_let_go(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(storage_at(path.parent))
    journal.start()

    def refuse(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        journal.close()
    opened = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
    assert str(path) not in opened


# ---------------------------------------------------------------- a file
@pytest.mark.parametrize("torn", ['{"event": "EPOCH_COMP', "{", '{"event": "COMPLETED"}'])
def test_a_torn_last_line_is_cut_off(path: Path, torn: str) -> None:
    path.write_text('{"event": "RUN_STARTED"}\n' + torn)
    assert [line["event"] for line in read_journal(path)] == ["RUN_STARTED"]
    journal = Journal(Folder(path.parent))
    journal.start()
    journal.write("RESUMED")
    journal.close()
    assert [line["event"] for line in read_journal(path)] == ["RUN_STARTED", "RESUMED"]
    assert len(path.read_text().splitlines()) == 2


def test_a_journal_that_ends_at_any_byte_is_read_and_goes_on(path: Path) -> None:
    journal = Journal(Folder(path.parent))
    journal.start()
    for number in range(3):
        journal.write("NOTE", number=number)
    journal.close()
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        complete = whole[:size].count(b"\n")
        assert len(list(read_journal(path))) == complete
        journal.start()
        journal.write("NEXT")
        journal.close()
        assert [line["event"] for line in read_journal(path)] == ["NOTE"] * complete + ["NEXT"]


def test_a_journal_that_is_one_torn_line_begins_anew(path: Path) -> None:
    path.write_text('{"event"')
    journal = Journal(Folder(path.parent))
    journal.start()
    journal.close()
    assert path.read_text() == ""


def test_a_line_for_which_there_is_no_room_leaves_no_half_of_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(Folder(path.parent))
    journal.start()
    journal.write("FIRST")
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:5]))
        journal.write("SECOND")
        assert [line["event"] for line in read_journal(path)] == ["FIRST"]
        assert path.read_bytes().endswith(b"}\n")
    journal.close()
    assert [line["event"] for line in read_journal(path)] == ["FIRST", "SECOND"]


def test_a_journal_is_its_owners_alone(path: Path) -> None:
    journal = Journal(Folder(path.parent))
    journal.start()
    journal.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_journal_in_the_current_folder_is_read_by_its_name_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    path.write_text('{"event": "NOTE"}\n')
    assert [line["event"] for line in read_journal("journal.jsonl")] == ["NOTE"]
    assert [line["event"] for line in read_journal(storage_at(".").locate("journal.jsonl"))] == ["NOTE"]


@pytest.mark.parametrize("action", ["eio:1", "enospc:1"])
def test_a_disk_that_refuses_the_second_half_of_a_line_keeps_no_first_half(path: Path, action: str) -> None:
    journal = Journal(Folder(path.parent))
    journal.start()
    failpoints.arm(f"journal.half={action}#2")
    try:
        for number in range(3):
            journal.write("NOTE", number=number)
            assert path.read_bytes().endswith(b"}\n")
    finally:
        failpoints.arm("")
    journal.close()
    assert [line["number"] for line in read_journal(path)] == [0, 1, 2]


def test_every_event_that_is_written_is_in_the_readme() -> None:
    package = Path(module.__file__).parent
    table = (package / "README.md").read_text().partition("## The journal")[2].partition("\n## ")[0]
    told = {event.key.removeprefix("cluster.") for event in ClusterEvents} | {"SPARE_LOST"}
    for path in package.rglob("*.py"):
        told |= set(re.findall(r'(?:journal\.write|\.note)\(\s*"([A-Z_]+)"', path.read_text()))
    assert {"RUN_STARTED", "EPOCH_COMPLETED", "CHECKPOINT_PRUNED"} <= told
    assert sorted(name for name in told if f"`{name}`" not in table) == []


def test_a_journal_that_is_removed_under_the_run_begins_anew_and_says_so(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(storage_at(path.parent))
    journal.start()
    journal.write("RUN_STARTED")
    path.unlink()
    journal.write("EPOCH_COMPLETED")
    journal.write("RUN_COMPLETED")
    journal.close()
    told = f"{path} was removed while the run wrote it: its lines until now are lost, and it begins anew"
    found = [(line["event"], line.get("text")) for line in read_journal(path)]
    assert found == [("JOURNAL_REMOVED", told), ("EPOCH_COMPLETED", None), ("RUN_COMPLETED", None)]
    assert capsys.readouterr().err == f"rankfire: {told}\n"


def test_lines_of_a_journal_whose_folder_was_removed_are_told_as_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    journal = Journal(storage_at(folder))
    journal.start()
    journal.write("RUN_STARTED")
    (folder / "journal.jsonl").unlink()
    folder.rmdir()
    journal.write("RUN_COMPLETED")
    journal.close()
    assert capsys.readouterr().err == (
        "rankfire: the journal can't be written: No such file or directory; its lines are kept for later\n"
        "rankfire: 1 of the journal's lines are lost: its storage did not take them\n"
    )
