"""A run's checkpoints on every storage: whatever crashes or rots, what is there is whole, or is said not to be."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.checkpoints.manifest import NAME
from orchestrator.checkpoints.registry import Refused, Registry
from orchestrator.errors import CheckpointError, FencedError
from tests.checkpoints import FILES, committed, manifest, staged
from workers.folder import Folder
from workers.locations import storage_at
from workers.parcels import Receipt
from workers.storage import Storage


class Refusing(Folder):
    """A folder that refuses some verbs."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.refused: set[str] = set()
        self.times = 10**6
        self.number = errno.EROFS

    def __getattribute__(self, name: str) -> object:
        if name in ("names", "move", "remove", "make_folder") and name in self.refused and self.times > 0:
            self.times -= 1
            raise OSError(self.number, os.strerror(self.number))
        return super().__getattribute__(name)

    def child(self, path: str) -> Folder:
        return Folder(self.root / path)


@pytest.fixture
def registry(storage: Storage) -> Registry:
    return Registry(storage.child("checkpoints"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def local(folder: Path) -> Registry:
    return Registry(storage_at(folder))


def names(registry: Registry) -> list[str]:
    return [checkpoint.name for checkpoint in registry.committed()]


def quick(registry: Registry, step: int) -> str:
    """A checkpoint without files."""
    return registry.commit(registry.open(step), manifest(step), []).name


def newest(registry: Registry) -> str:
    checkpoint, refused = registry.newest_valid()
    assert (checkpoint is not None, refused) == (True, [])
    assert checkpoint is not None
    return checkpoint.name


# ---------------------------------------------------------------- what there is
def test_a_run_without_checkpoints_has_none(registry: Registry) -> None:
    assert (registry.committed(), registry.newest_valid(), registry.sweep()) == ([], (None, []), [])
    assert registry.found() == []


def test_a_committed_checkpoint_is_the_newest_and_whole(registry: Registry) -> None:
    committed(registry, 5)
    made = committed(registry, 10)
    assert made.url == made.storage.url == registry.storage.locate("step-00000010")
    found, refused = registry.newest_valid()
    assert found is not None
    assert (found.name, found.manifest, refused) == (made.name, made.manifest, [])
    assert names(registry) == ["step-00000005", "step-00000010"]
    present = [path for path in made.storage.files() if path != ".claim"]
    assert present == sorted([*FILES, NAME])
    assert [entry.path for entry in made.manifest.files] == FILES


def test_steps_are_ordered_as_numbers(registry: Registry) -> None:
    for step in (99_999_999, 100_000_000, 5):
        quick(registry, step)
    assert names(registry) == ["step-00000005", "step-99999999", "step-100000000"]
    assert newest(registry) == "step-100000000"


def test_the_same_step_again_gets_another_name_and_is_the_newer_one(registry: Registry) -> None:
    made = [quick(registry, 5) for _ in range(11)]
    assert made == names(registry) == ["step-00000005", *(f"step-00000005-{number}" for number in range(2, 12))]
    assert newest(registry) == "step-00000005-11"


def test_places_of_two_saves_never_meet(registry: Registry) -> None:
    first, second = registry.open(5), registry.open(5)
    assert first.folder != second.folder
    assert names(registry) == []


def test_names_that_are_none_of_ours_are_left_alone(local: Registry, folder: Path) -> None:
    quick(local, 5)
    for name in ("my notes", "step-5", "step-00000007.old", "step-00000007-x"):
        (folder / name).mkdir()
    assert (names(local), local.sweep()) == (["step-00000005"], [])
    assert len(list(folder.iterdir())) == 5


# ---------------------------------------------------------------- commit
def test_until_it_is_committed_it_is_no_checkpoint(registry: Registry) -> None:
    committed(registry, 5)
    staging, receipts = staged(registry, 10)
    assert newest(registry) == "step-00000005"
    registry.commit(staging, manifest(10), receipts)
    assert newest(registry) == "step-00000010"


def test_files_that_nobody_vouches_for_are_refused(registry: Registry) -> None:
    staging, receipts = staged(registry, 5)
    with staging.storage.create("data/strange"):
        pass
    staging.storage.remove("shared.pt")
    with pytest.raises(CheckpointError) as caught:
        registry.commit(staging, manifest(), receipts)
    assert str(caught.value) == f"checkpoint {staging.folder}: files and receipts differ: data/strange, shared.pt"
    assert names(registry) == []


def test_a_place_that_was_given_up_can_not_be_committed(registry: Registry) -> None:
    staging, receipts = staged(registry, 5)
    assert registry.sweep() == [staging.folder]  # as a new owner of the run does
    with pytest.raises(CheckpointError, match=r"files and receipts differ|was given up by another process meanwhile"):
        registry.commit(staging, manifest(), receipts)
    with pytest.raises(CheckpointError, match=r"can't be committed|was given up by another process meanwhile"):
        registry.commit(staging, manifest(), [])
    assert names(registry) == []


def test_what_was_swept_while_its_files_were_still_written_is_none_and_the_step_can_be_saved_again(
    registry: Registry,
) -> None:
    staging, receipts = staged(registry, 5)
    registry.sweep()
    if not registry.storage.moves:  # the old owner goes on writing
        staging, receipts = registry.open(5), []
        assert staging.name == "step-00000005-2"
    else:
        staging, receipts = registry.open(5), []
    registry.commit(staging, manifest(), receipts)
    assert names(registry) == [staging.name]


def test_an_abandoned_save_leaves_nothing(registry: Registry) -> None:
    staging, _ = staged(registry, 5)
    registry.abandon(staging)
    registry.abandon(staging)
    assert registry.storage.files() == []
    assert (names(registry), registry.sweep()) == ([], [])


# ---------------------------------------------------------------- owners
class Owner:
    """Says whether this process owns the run."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked = 0

    def __call__(self) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("error", [FencedError.by("r", "x"), OSError(errno.ETIMEDOUT, "no answer")])
def test_who_does_not_know_that_it_owns_the_run_removes_nothing_that_was_staged(
    storage: Storage, error: Exception
) -> None:
    owner = Owner()
    registry = Registry(storage.child("checkpoints"), owner)
    staging, _ = staged(registry, 10)
    before = storage.files()
    owner.error = error
    registry.abandon(staging)
    assert storage.files() == before


@pytest.mark.parametrize("error", [FencedError.by("r", "x"), OSError(errno.ETIMEDOUT, "no answer")])
def test_who_does_not_know_that_it_owns_the_run_changes_nothing(storage: Storage, error: Exception) -> None:
    owner = Owner()
    registry = Registry(storage.child("checkpoints"), owner)
    made = committed(registry, 5)
    staging, receipts = staged(registry, 10)
    before = storage.files()
    owner.error = error
    acts: list[Callable[[], object]] = [
        lambda: registry.sweep(),
        lambda: registry.open(15),
        lambda: registry.commit(staging, manifest(10), receipts),
        lambda: registry.remove([made]),
    ]
    for act in acts:
        with pytest.raises(FencedError if isinstance(error, FencedError) else CheckpointError):
            act()
    assert [path for path in storage.files() if not path.endswith(f"{staging.folder}/{NAME}")] == before
    assert names(registry) == ["step-00000005"]


# ---------------------------------------------------------------- a storage that refuses
def refused(act: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        act()
    return str(caught.value)


def test_a_file_where_the_folder_should_be_is_told(local: Registry, folder: Path) -> None:
    folder.write_text("a file where a folder should be")
    assert refused(lambda: local.open(5)) == f"checkpoint {folder}: can't be written: Not a directory"


def test_a_storage_that_refuses_is_told_at_each_step(folder: Path) -> None:
    storage = Refusing(folder)
    registry = Registry(storage)
    made, (staging, receipts) = committed(registry, 5), staged(registry, 10)
    why = "Read-only file system"
    storage.refused = {"names"}
    assert refused(registry.committed) == f"checkpoint {folder}: can't be read: {why}"
    assert refused(registry.newest_valid) == f"checkpoint {folder}: can't be read: {why}"
    storage.refused = {"make_folder"}
    assert refused(lambda: registry.open(15)) == f"checkpoint {folder}: can't be written: {why}"
    storage.refused = {"move"}
    assert refused(lambda: registry.commit(staging, manifest(10), receipts)) == (
        f"checkpoint step-00000010.attempt-1: can't be committed: {why}"
    )
    assert refused(lambda: registry.remove([made])) == f"checkpoint step-00000005: can't be removed: {why}"
    storage.refused = {"remove"}
    assert refused(registry.sweep) == f"checkpoint {folder}: can't be swept: {why}"
    registry.abandon(staging)  # what can't be removed now is swept later
    registry.remove([made])
    assert names(registry) == []
    storage.refused = set()
    assert registry.sweep() == ["step-00000005.pruned-1", "step-00000010.attempt-1"]


def test_a_manifest_that_stumbles_is_written_again(
    local: Registry, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    staging, receipts = staged(local, 5)
    tries = []

    def stumble(descriptor: int) -> None:
        tries.append(descriptor)
        if len(tries) < 3:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("workers.retry.time.sleep", lambda seconds: None)
    monkeypatch.setattr(os, "fsync", stumble)
    local.commit(staging, manifest(), receipts)
    monkeypatch.undo()
    assert len(tries) > 3
    assert newest(local) == "step-00000005"


def test_a_manifest_that_can_not_be_read_now_is_told(local: Registry, folder: Path) -> None:
    quick(local, 5)
    (folder / "step-00000005" / NAME).unlink()
    (folder / "step-00000005" / NAME).mkdir()
    assert local.found() == [("step-00000005", "its manifest can't be read: Is a directory")]


# ---------------------------------------------------------------- a crash at any step of a commit
class Crash(BaseException):
    pass


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """Let the process die before its `step`-th system call that changes the folder or syncs it; what was called."""
    called: list[str] = []

    def counted(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            called.append(name)
            if len(called) == step:
                raise Crash
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr("os.fsync", counted("fsync", os.fsync))
    for name in ("rename", "replace", "unlink"):
        monkeypatch.setattr(Path, name, counted(name, getattr(Path, name)))
    return called


COMMIT = ["fsync", "replace", "unlink", "fsync", "fsync", "fsync", "fsync", "rename", "fsync"]
"""The manifest, synced, renamed (its temporary name is gone), the folder; three folders; the name; the folder of it."""


@pytest.mark.parametrize("step", range(1, len(COMMIT) + 1))
def test_a_crash_at_any_step_of_a_commit_leaves_the_old_one_or_the_new_one(
    local: Registry, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    committed(local, 5)
    staging, receipts = staged(local, 10)
    crash_at(monkeypatch, step)
    with pytest.raises(Crash):
        local.commit(staging, manifest(10), receipts)
    monkeypatch.undo()
    renamed = step == len(COMMIT)  # only the last sync of the folder itself was left
    assert local.sweep() == ([] if renamed else ["step-00000010.attempt-1"])
    assert newest(local) == ("step-00000010" if renamed else "step-00000005")


def test_a_commit_takes_these_steps_in_this_order(local: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    staging, receipts = staged(local, 10)
    called = crash_at(monkeypatch, 10**6)
    local.commit(staging, manifest(10), receipts)
    assert called == COMMIT


# ---------------------------------------------------------------- sweeping and pruning
def test_sweeping_takes_what_interrupted_saves_and_prunings_left(local: Registry, folder: Path) -> None:
    kept = quick(local, 5)
    local.open(6)
    (folder / quick(local, 4)).rename(folder / "step-00000004.pruned-1")
    (folder / "my notes").mkdir()
    assert local.sweep() == ["step-00000004.pruned-1", "step-00000006.attempt-1"]
    assert sorted(path.name for path in folder.iterdir()) == ["my notes", kept]


def test_sweeping_takes_the_files_of_what_was_never_committed(registry: Registry) -> None:
    committed(registry, 5)
    staging, _ = staged(registry, 10)
    before = registry.storage.files("step-00000005")
    assert registry.sweep() == [staging.folder]
    assert registry.sweep() == []
    assert registry.storage.files("step-00000005") == before
    left = registry.storage.files(staging.folder)
    assert left == ([] if registry.storage.moves else [".claim", NAME])  # who still writes there can't commit it
    assert [name for name, _ in registry.found()] == names(registry) == ["step-00000005"]


def test_removed_checkpoints_are_gone(registry: Registry) -> None:
    first, second = committed(registry, 5), committed(registry, 6)
    registry.remove([first])
    assert {path.partition("/")[0] for path in registry.storage.files()} == {second.name}
    assert names(registry) == [second.name]


@pytest.mark.parametrize("number", range(3))
def test_a_crash_while_pruning_leaves_no_half_checkpoint(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    first, second = committed(registry, 5), committed(registry, 6)
    kind, calls = type(registry.storage), []
    remove = kind.remove

    def crash(self: Storage, path: str) -> None:
        calls.append(path)
        if len(calls) > number:
            raise Crash
        remove(self, path)

    monkeypatch.setattr(kind, "remove", crash)
    if number >= (1 if registry.storage.moves else 2):  # a folder, renamed before; a manifest, and what it told of
        registry.remove([first])
    else:
        with pytest.raises(Crash):
            registry.remove([first])
    monkeypatch.undo()
    still = not registry.storage.moves and number == 0  # nothing has happened yet
    assert names(registry) == [first.name, second.name][not still :]
    registry.sweep()
    assert newest(registry) == second.name
    assert len(registry.found()) == len(names(registry))
    if not still:
        left = {path for path in registry.storage.files() if not path.startswith(second.name)}
        assert left <= {f"{first.name}/{NAME}", f"{first.name}/.claim"}


def test_what_was_left_of_a_pruning_does_not_stop_the_next(local: Registry, folder: Path) -> None:
    first = committed(local, 5)
    shutil.copytree(folder / first.name, folder / "step-00000005.pruned-1")
    local.remove([first])
    assert names(local) == []
    assert local.sweep() == ["step-00000005.pruned-1"]


def test_a_checkpoint_that_is_gone_can_not_be_removed(local: Registry, folder: Path) -> None:
    first = committed(local, 5)
    shutil.rmtree(folder / first.name)
    assert refused(lambda: local.remove([first])) == (
        "checkpoint step-00000005: can't be removed: No such file or directory"
    )


# ---------------------------------------------------------------- no bit
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.sampled_from(FILES), place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_no_flipped_bit_is_ever_taken_for_what_was_written(
    local: Registry, folder: Path, which: str, place: int, bit: int
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    path = folder / committed(local, 5).name / which
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    found, told = local.newest_valid()
    assert (found, told) == (
        None,
        [Refused(name="step-00000005", why=f"{which} is not what was written: its sha256 differs")],
    )


def test_a_checkpoint_may_be_empty_but_not_lose_its_manifest(local: Registry, folder: Path) -> None:
    quick(local, 5)
    (folder / "step-00000005" / NAME).unlink()
    assert local.newest_valid() == (None, [Refused(name="step-00000005", why="its manifest is missing")])


def test_a_receipt_of_what_is_not_there_is_refused(registry: Registry) -> None:
    staging = registry.open(5)
    with pytest.raises(CheckpointError, match="files and receipts differ: data/x"):
        registry.commit(staging, manifest(), [Receipt(path="data/x", size=1, sha256="0")])


# ---------------------------------------------------------------- a storage that stumbles
def test_a_listing_that_stumbles_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Refusing(folder)
    registry = Registry(storage)
    monkeypatch.setattr("workers.retry.time.sleep", lambda seconds: None)
    acts: list[Callable[[], object]] = [
        lambda: committed(registry, 5),
        lambda: registry.committed(),
        lambda: registry.newest_valid(),
        lambda: registry.sweep(),
    ]
    for act in acts:
        storage.refused, storage.times, storage.number = {"names"}, 2, errno.EIO
        act()
        assert storage.times == 0
    assert names(registry) == ["step-00000005"]
