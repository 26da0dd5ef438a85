"""Whether every byte is as the manifest says, on any storage."""

import errno
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from orchestrator.checkpoints.verify import BLOCK, damage, problems
from tests.checkpoints import manifest
from workers.folder import Folder
from workers.locations import storage_at
from workers.parcels import Receipt
from workers.storage import Storage


def receipt(path: str, content: bytes) -> Receipt:
    return Receipt(path=path, size=len(content), sha256=sha256(content).hexdigest())


FILE = receipt("data/a.distcp", b"hello")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"hello", None),
        (b"hellO", "data/a.distcp is not what was written: its sha256 differs"),
        (b"hell", "data/a.distcp has 4 bytes, its manifest says 5"),
        (b"", "data/a.distcp has 0 bytes, its manifest says 5"),
        (None, "data/a.distcp is missing"),
    ],
)
def test_every_byte_of_every_file_is_checked(storage: Storage, content: bytes | None, told: str | None) -> None:
    if content is not None:
        with storage.create(FILE.path) as file:
            file.write(content)
    assert damage(storage, manifest(files=(FILE,))) == told


def test_a_large_file_is_read_to_its_last_byte(storage: Storage) -> None:
    content = bytes(2 * BLOCK) + b"end"
    with storage.create("big") as file:
        file.write(content)
    assert damage(storage, manifest(files=(receipt("big", content),))) is None
    assert damage(storage, manifest(files=(receipt("big", content[:-1] + b"D"),))) is not None


def test_an_empty_file_is_checked_and_a_checkpoint_without_files_is_whole(storage: Storage) -> None:
    assert damage(storage, manifest()) is None
    assert damage(storage, manifest(files=(receipt("a", b""),))) == "a is missing"
    with storage.create("a"):
        pass
    assert damage(storage, manifest(files=(receipt("a", b""),))) is None


def test_a_folder_where_a_file_should_be_is_no_file(storage: Storage) -> None:
    with storage.create("data/a.distcp/inside"):
        pass
    assert damage(storage, manifest(files=(FILE,))) == "data/a.distcp is missing"


def test_all_problems_are_told_in_the_order_of_the_manifest(tmp_path: Path) -> None:
    storage = storage_at(tmp_path)
    files = [receipt(name, name.encode() * size) for name, size in (("c", 1), ("b", 9), ("a", 4), ("d", 2))]
    for name, content in (("c", b"C"), ("a", b"aaaa"), ("d", b"ddd")):
        with storage.create(name) as file:
            file.write(content)
    assert list(problems(storage, manifest(files=tuple(files)))) == [
        "c is not what was written: its sha256 differs",
        "b is missing",
        "d has 3 bytes, its manifest says 2",
    ]


class Stumbling(Folder):
    """A network file system that refuses a few times."""

    def __init__(self, root: Path, times: int) -> None:
        super().__init__(root)
        self.times = times

    def size(self, path: str) -> int:
        self.times -= 1
        if self.times >= 0:
            raise OSError(errno.ESTALE, "Stale file handle")
        return super().size(path)


@pytest.mark.parametrize(("times", "told"), [(3, None), (4, "data/a.distcp can't be read: Stale file handle")])
def test_a_storage_that_stumbles_is_asked_again_before_a_checkpoint_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, told: str | None
) -> None:
    monkeypatch.setattr("workers.retry.time.sleep", lambda seconds: None)
    storage = Stumbling(tmp_path, times)
    with storage.create(FILE.path) as file:
        file.write(b"hello")
    assert damage(storage, manifest(files=(FILE,))) == told


def test_who_stops_to_verify_does_not_wait_for_what_is_not_begun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shut: list[dict[str, bool]] = []
    shutdown = ThreadPoolExecutor.shutdown

    def note(pool: ThreadPoolExecutor, wait: bool = True, *, cancel_futures: bool = False) -> None:
        shut.append({"cancel_futures": cancel_futures})
        shutdown(pool, wait, cancel_futures=cancel_futures)

    def stop(storage: Storage, path: str) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", note)
    monkeypatch.setattr(Folder, "size", stop)
    with pytest.raises(KeyboardInterrupt):
        damage(storage_at(tmp_path), manifest(files=(FILE,)))
    assert shut == [{"cancel_futures": True}]
