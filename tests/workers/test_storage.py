"""The verbs of storage mean the same on a folder, in memory, and on a real S3."""

import contextlib
import errno
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from workers import objects
from workers.folder import Folder
from workers.locations import storage_at
from workers.objects import Objects
from workers.storage import Storage

ODD = [
    "a b",
    "ü日本",
    "a%20b",
    "q'u\"o",
    "x:y",
    "star*[1]?",
    "{a}",
    "~t",
    "a+b&c=d",
    "#1",
    "...",
    "new\nline",
    ".hidden",
]


def put(storage: Storage, path: str, content: bytes = b"x") -> None:
    with storage.create(path) as file:
        file.write(content)


def interrupted(storage: Storage, content: bytes) -> None:
    with storage.create("a") as file:
        file.write(content)
        raise ZeroDivisionError


# ---------------------------------------------------------------- reading and writing
def test_a_file_is_read_as_it_was_created(storage: Storage) -> None:
    put(storage, "deep/er/file", b"hello")
    assert (storage.read("deep/er/file"), storage.size("deep/er/file")) == (b"hello", 5)
    with storage.open("deep/er/file") as file:
        file.seek(3)
        assert file.read(1) == b"l"
        assert file.seek(0) == 0
        assert file.read() == b"hello"


def test_a_file_of_many_blocks_is_read_as_it_was_created(storage: Storage) -> None:
    blocks = [bytes([number]) * (3 << 20) for number in range(5)]
    with storage.create("big") as file:
        for block in blocks:
            file.write(block)
            file.flush()
    assert storage.read("big") == b"".join(blocks)
    with storage.open("big") as file:
        file.seek((3 << 20) - 1)
        assert file.read(2) == b"\0\1"


def test_an_empty_file_is_a_file(storage: Storage) -> None:
    put(storage, "empty", b"")
    assert (storage.exists("empty"), storage.size("empty"), storage.read("empty")) == (True, 0, b"")


def test_to_create_again_is_to_replace(storage: Storage) -> None:
    put(storage, "a", b"long content")
    put(storage, "a", b"short")
    assert storage.read("a") == b"short"


@pytest.mark.parametrize("size", [10, 60 << 20])
def test_what_an_exception_interrupts_is_never_taken_for_a_file_of_an_object_store(
    object_store: object, size: int
) -> None:
    storage = storage_at(f"s3://rankfire/interrupted-{size}")
    with pytest.raises(ZeroDivisionError):
        interrupted(storage, b"x" * size)
    assert (storage.exists("a"), storage.files()) == (False, [])
    put(storage, "a", b"whole")
    assert storage.read("a") == b"whole"


def test_what_an_exception_interrupts_in_a_folder_is_its_callers_to_remove(tmp_path: object) -> None:
    storage = storage_at(str(tmp_path))
    with pytest.raises(ZeroDivisionError):
        interrupted(storage, b"x")
    storage.remove("a")
    assert storage.files() == []


def test_to_replace_is_to_have_the_new_content_whole(storage: Storage) -> None:
    put(storage, "folder/a", b"old")
    storage.replace("folder/a", b"new content")
    storage.replace("folder/b", b"")
    assert [storage.read(f"folder/{name}") for name in "ab"] == [b"new content", b""]
    assert storage.files() == ["folder/a", "folder/b"]


def test_a_reader_sees_the_old_content_or_the_new_one(durable: Storage) -> None:
    contents = [bytes([number]) * 100_000 for number in (65, 66)]
    durable.make_folder("f")
    durable.replace("f/a", contents[0])
    ended, seen = threading.Event(), set()

    def write() -> None:
        for number in range(1, 21):
            durable.replace("f/a", contents[number % 2])
        ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not ended.is_set():
        seen.add(durable.read("f/a"))
    thread.join()
    assert seen <= set(contents)


# ---------------------------------------------------------------- who is first
def test_a_claim_is_written_once(storage: Storage) -> None:
    storage.claim("lease/1", b"mine")
    with pytest.raises(FileExistsError):
        storage.claim("lease/1", b"yours")
    assert storage.read("lease/1") == b"mine"


@pytest.mark.parametrize("what", ["claim", "folder"])
def test_of_eight_that_race_exactly_one_wins(storage: Storage, what: str) -> None:
    barrier, won, lost = threading.Barrier(8), [], []

    def race(number: int) -> None:
        barrier.wait()
        try:
            if what == "claim":
                storage.claim("race/claim", b"%d" % number)
            else:
                storage.make_folder("race/folder")
        except FileExistsError:
            lost.append(number)
        else:
            won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    if what == "claim":
        assert storage.read("race/claim") == b"%d" % won[0]


def test_a_folder_is_made_once(storage: Storage) -> None:
    storage.make_folder("deep/folder")
    with pytest.raises(FileExistsError):
        storage.make_folder("deep/folder")
    storage.make_folder("deep/another")
    assert storage.names("deep") == ["another", "folder"]


# ---------------------------------------------------------------- looking
def test_names_are_what_lies_in_a_folder_and_files_all_that_lies_below(storage: Storage) -> None:
    for path in ("b/2/x", "b/1", "a", "b/2/y/z"):
        put(storage, path)
    assert storage.names() == ["a", "b"]
    assert storage.names("b") == ["1", "2"]
    assert storage.files() == ["a", "b/1", "b/2/x", "b/2/y/z"]
    assert storage.files("b") == ["1", "2/x", "2/y/z"]
    assert storage.files("b/2") == ["x", "y/z"]


def test_where_nothing_is_nothing_is_found(storage: Storage) -> None:
    assert (storage.names(), storage.files()) == ([], [])
    assert (storage.names("no/folder"), storage.files("no/folder")) == ([], [])
    put(storage, "a")
    assert (storage.names("a"), storage.files("a")) == ([], [])  # a file has nothing below it


def test_a_name_is_no_prefix(storage: Storage) -> None:
    for path in ("step-1/a", "step-10/b", "step-1.old"):
        put(storage, path)
    assert storage.files("step-1") == ["a"]
    storage.remove("step-1")
    assert storage.files() == ["step-1.old", "step-10/b"]


def test_what_is_missing_is_told_as_missing(storage: Storage) -> None:
    put(storage, "folder/a")
    for look in (storage.read, storage.size):
        with pytest.raises(FileNotFoundError):
            look("nothing")
    with pytest.raises(FileNotFoundError), storage.open("nothing"):
        pass
    with pytest.raises(FileNotFoundError):
        storage.size("folder")
    assert not storage.exists("nothing")
    assert not storage.exists("folder")


def test_unusual_names_are_names(storage: Storage) -> None:
    for name in ODD:
        put(storage, f"odd/{name}/{name}", b"1")
        storage.replace(f"odd/{name}/{name}", b"2")
        storage.claim(f"odd/{name}.claim", b"3")
        assert storage.read(f"odd/{name}/{name}") == b"2"
        assert storage.names(f"odd/{name}") == [name]
    assert storage.files("odd") == sorted([f"{name}.claim" for name in ODD] + [f"{name}/{name}" for name in ODD])
    for name in ODD:
        storage.move(f"odd/{name}", f"odd/{name}.old")
        storage.remove(f"odd/{name}.old")
        storage.remove(f"odd/{name}.claim")
    assert storage.files() == []


def test_a_name_is_no_pattern(storage: Storage) -> None:
    for path in ("f/a*", "f/ab", "g*/a", "gh/a"):
        put(storage, path)
    storage.remove("f/a*")
    storage.remove("g*")
    assert storage.files() == ["f/ab", "gh/a"]


# ---------------------------------------------------------------- removing and moving
def test_what_is_removed_is_gone_and_may_be_removed_again(storage: Storage) -> None:
    for path in ("f/a", "f/b/c", "g"):
        put(storage, path)
    for path in ("f", "f", "g", "g", "never/was"):
        storage.remove(path)
    assert storage.files() == []
    if storage.moves:
        assert storage.names() == []  # SeaweedFS names empty folders for minutes


def test_a_folder_that_is_only_named_may_be_moved(durable: Storage) -> None:
    put(durable, "f/b/c")
    durable.remove("f/b/c")
    if not durable.moves and durable.names() == ["f"]:
        durable.move("f", "g")
    assert durable.files() == []


def test_what_is_moved_has_another_name(storage: Storage) -> None:
    for path in ("f/a", "f/b/c", "g"):
        put(storage, path, path.encode())
    storage.move("f", "h")
    storage.move("g", "h.txt")
    assert storage.files() == ["h.txt", "h/a", "h/b/c"]
    assert [storage.read(path) for path in storage.files()] == [b"g", b"f/a", b"f/b/c"]


def test_what_is_not_there_can_not_be_moved(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.move("nothing", "something")


def test_a_child_has_a_folder_as_its_root(storage: Storage) -> None:
    put(storage.child("a").child("b"), "c")
    assert storage.files() == ["a/b/c"]
    assert storage.child("a/b").url == storage.locate("a/b") == f"{storage.url}/a/b"
    assert storage.locate("") == storage.url
    assert storage_at(storage.child("a").url).files() == ["b/c"]
    storage.child("a").sync("b")


def test_only_a_folder_moves_in_one_step(storage: Storage) -> None:
    assert storage.moves == isinstance(storage, Folder)
    assert repr(storage) == f"{type(storage).__name__}({storage.url!r})"


# ---------------------------------------------------------------- where
def test_paths_are_folders_and_urls_are_objects(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    monkeypatch.setenv("HOME", "/home/me")
    assert [storage_at(path).url for path in ("runs", "~/runs", "file:///a/b")] == [
        f"{tmp_path}/runs",
        "/home/me/runs",
        "/a/b",
    ]
    assert storage_at("memory://runs/").url == "memory://runs"


def test_a_url_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^'nope://bucket': Protocol not known: nope"):
        storage_at("nope://bucket")


# ---------------------------------------------------------------- errors
def test_a_file_where_a_folder_should_be_is_an_error_of_the_system(tmp_path: object) -> None:
    storage = storage_at(str(tmp_path))
    put(storage, "a")
    verbs = [
        lambda: put(storage, "a/b"),
        lambda: storage.claim("a/b", b""),
        lambda: storage.replace("a/b", b""),
        lambda: storage.make_folder("a/b"),
    ]
    for act in verbs:
        with pytest.raises(NotADirectoryError):
            act()


def test_an_interrupted_replacement_leaves_no_temporary_file(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = storage_at(str(tmp_path))
    storage.replace("a", b"old")

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", refuse)
    for write in (storage.replace, storage.claim):
        with pytest.raises(OSError, match="broken"):
            write("a", b"new")
    monkeypatch.undo()
    assert (os.listdir(str(tmp_path)), storage.read("a")) == (["a"], b"old")


VERBS = {
    "names": lambda storage: storage.names("a"),
    "files": lambda storage: storage.files("a"),
    "read": lambda storage: storage.read("a"),
    "size": lambda storage: storage.size("a"),
    "open": lambda storage: storage.open("a").__enter__(),
    "create": lambda storage: put(storage, "a"),
    "claim": lambda storage: storage.claim("a", b"x"),
    "replace": lambda storage: storage.replace("a", b"x"),
    "remove": lambda storage: storage.remove("a"),
    "move": lambda storage: storage.move("a", "b"),
}


@pytest.fixture
def another_client() -> Iterator[None]:
    """What the environment says now counts, not what it said when the first client was made."""
    objects._client.cache_clear()
    yield
    objects._client.cache_clear()


@pytest.mark.usefixtures("another_client")
@pytest.mark.parametrize("verb", VERBS)
def test_a_store_that_is_not_there_is_an_error_of_the_system(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    with pytest.raises(OSError, match="Could not connect") as caught:
        VERBS[verb](storage_at("s3://rankfire/x"))
    assert not isinstance(caught.value, FileNotFoundError)


@pytest.mark.usefixtures("another_client")
@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_secret_is_an_error_of_the_system(
    object_store: object, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(PermissionError):
        VERBS[verb](storage_at("s3://rankfire/x"))


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - {"names", "files", "size"}))
def test_a_bucket_that_is_not_there_is_an_error_of_the_system(object_store: object, verb: str) -> None:
    storage = storage_at("s3://rankfire-has-no-such/x")
    with contextlib.nullcontext() if verb == "remove" else pytest.raises(OSError):  # noqa: PT011 - FileNotFoundError
        VERBS[verb](storage)


class Client:
    """A file system whose library raises what it likes."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def _strip_protocol(self, url: str) -> str:
        return url.partition("://")[2]

    def cat_file(self, key: str) -> bytes:
        raise self.error


def named(name: str, module: str) -> Exception:
    kind: type[Exception] = type(name, (Exception,), {"__module__": module})
    return kind("no answer")


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (named("ReadTimeoutError", "botocore.exceptions"), errno.ETIMEDOUT),
        (named("ConnectTimeoutError", "aiobotocore.x"), errno.ETIMEDOUT),
        (named("ServerDisconnectedError", "aiohttp.client"), errno.ETIMEDOUT),
        (named("NoCredentialsError", "botocore.exceptions"), errno.EREMOTE),
    ],
)
def test_whatever_a_client_library_raises_is_an_error_of_the_system(error: Exception, number: int) -> None:
    with pytest.raises(OSError, match=f"s3://b/x: {type(error).__name__}: no answer") as caught:
        Objects("s3://b", Client(error)).read("x")
    assert caught.value.errno == number


def test_an_error_that_is_nobodys_client_is_left_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        Objects("s3://b", Client(ZeroDivisionError())).read("x")


class Forgetful(Client):
    """A store that has written what it was told, and whose answer was lost."""

    def __init__(self, content: bytes) -> None:
        super().__init__(OSError(errno.EINVAL, "At least one of the pre-conditions you specified did not hold"))
        self.content: bytes | None = content

    def pipe_file(self, key: str, content: bytes, mode: str) -> None:
        raise self.error

    def info(self, key: str) -> dict[str, object]:
        if self.content is None:
            raise FileNotFoundError(key)
        return {"type": "file", "size": len(self.content)}

    def cat_file(self, key: str) -> bytes:
        assert self.content is not None
        return self.content


def test_a_claim_whose_answer_was_lost_is_ours_if_the_content_is() -> None:
    Objects("s3://b", Forgetful(b"mine")).claim("lease", b"mine")
    with pytest.raises(FileExistsError):
        Objects("s3://b", Forgetful(b"yours")).claim("lease", b"mine")


def test_a_claim_that_failed_is_told() -> None:
    store = Forgetful(b"")
    store.content = None
    with pytest.raises(OSError, match="pre-conditions"):
        Objects("s3://b", store).claim("lease", b"mine")


# ---------------------------------------------------------------- what a power cut leaves
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are brought to the disk from now on."""
    folders: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        if os.path.isdir(path := os.path.realpath(f"/proc/self/fd/{descriptor}")):
            folders.append(path)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    return folders


def test_folders_that_are_made_on_the_way_are_on_the_disk_with_what_is_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = synced(monkeypatch)
    storage = Folder(tmp_path / "runs")
    storage.make_folder("r/a")
    assert sorted(folders) == [str(tmp_path), f"{tmp_path}/runs", f"{tmp_path}/runs/r"]
    folders.clear()
    put(storage, "r/a/data/x")
    put(storage, "r/a/data/y")
    assert folders == [f"{tmp_path}/runs/r/a"]


def test_what_a_writer_left_that_died_is_tidied_away_and_nothing_else(storage: Storage) -> None:
    left = [".spec.yaml.0123abcd.tmp"] if storage.moves else []
    for path in ("spec.yaml", ".hidden", "lease/.1.json.0123abcd.tmp", *left):
        put(storage, path)
    storage.tidy()
    kept = [".hidden", "lease/.1.json.0123abcd.tmp", "spec.yaml"]
    assert storage.files() == kept


class Plain(io.BytesIO):
    """A file of a library that lets nobody say that it is closed."""


def test_an_upload_that_fails_is_told_as_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Objects("s3://b", SimpleNamespace(_strip_protocol=lambda url: url, open=lambda key, mode: Plain()))
    with pytest.raises(ZeroDivisionError):
        interrupted(store, b"half")
