"""A run's checkpoints on a disk: whatever crashes or rots, what is there is whole, or is said not to be."""

import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.checkpoints.manifest import FileEntry, Manifest
from orchestrator.checkpoints.registry import Committed, Registry
from orchestrator.errors import CheckpointError


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "checkpoints")


def manifest(step: int) -> Manifest:
    return Manifest(run="r", epoch=1, iteration=step, epoch_length=None, world_size=1, time=0.0, metrics={})


def write(staging: Path, path: str, content: bytes) -> FileEntry:
    (staging / path).write_bytes(content)
    return FileEntry(path=path, size=len(content), sha256=sha256(content).hexdigest())


def fill(staging: Path) -> list[FileEntry]:
    return [write(staging, "data/a", b"weights of " + staging.name.encode()), write(staging, "ranks/r", b"rng")]


def saved(registry: Registry, step: int) -> Committed:
    staging = registry.open(step)
    return registry.commit(staging, manifest(step), fill(staging))


def names(registry: Registry) -> list[str]:
    return [checkpoint.name for checkpoint in registry.committed()]


def test_a_run_without_checkpoints_has_none(registry: Registry) -> None:
    assert (registry.committed(), registry.newest_valid(), registry.sweep()) == ([], (None, []), [])


def test_a_committed_checkpoint_is_the_newest_and_whole(registry: Registry) -> None:
    saved(registry, 5)
    made = saved(registry, 10)
    assert made.folder == registry.folder / "step-00000010"
    assert registry.newest_valid() == (made, [])
    assert names(registry) == ["step-00000005", "step-00000010"]


def test_steps_are_ordered_as_numbers(registry: Registry) -> None:
    for step in (99_999_999, 100_000_000, 5):
        saved(registry, step)
    assert names(registry) == ["step-00000005", "step-99999999", "step-100000000"]
    newest, _ = registry.newest_valid()
    assert newest is not None
    assert newest.manifest.iteration == 100_000_000


def test_the_same_step_again_gets_another_name_and_is_the_newer_one(registry: Registry) -> None:
    for _ in range(11):
        saved(registry, 5)
    assert names(registry) == ["step-00000005", *(f"step-00000005-{number}" for number in range(2, 12))]
    newest, _ = registry.newest_valid()
    assert newest is not None
    assert newest.name == "step-00000005-11"


def test_staging_folders_never_meet(registry: Registry) -> None:
    first, second = registry.open(5), registry.open(5)
    assert (first.name, second.name) == ("step-00000005.attempt-1", "step-00000005.attempt-2")


def test_files_that_nobody_vouches_for_are_refused(registry: Registry) -> None:
    staging = registry.open(5)
    files = fill(staging)
    write(staging, "data/strange", b"?")
    (staging / "ranks" / "r").unlink()
    with pytest.raises(CheckpointError) as caught:
        registry.commit(staging, manifest(5), files)
    assert str(caught.value) == ("checkpoint step-00000005.attempt-1: files and receipts differ: data/strange, ranks/r")
    assert names(registry) == []


def test_an_abandoned_save_leaves_nothing(registry: Registry) -> None:
    staging = registry.open(5)
    fill(staging)
    registry.abandon(staging)
    registry.abandon(staging)
    assert list(registry.folder.iterdir()) == []


def test_a_disk_that_refuses_is_told(registry: Registry) -> None:
    registry.folder.write_text("a file where a folder should be")
    with pytest.raises(CheckpointError) as caught:
        registry.open(5)
    assert str(caught.value) == f"checkpoint {registry.folder}: can't be written: File exists"


def test_a_commit_that_the_disk_refuses_is_told(registry: Registry) -> None:
    staging = registry.open(5)
    files = fill(staging)
    (staging / "manifest.json.tmp").mkdir()
    with pytest.raises(CheckpointError) as caught:
        registry.commit(staging, manifest(5), files)
    assert str(caught.value) == "checkpoint step-00000005.attempt-1: can't be committed: Is a directory"


# ---------------------------------------------------------------- a crash at any step of a commit
class Crash(BaseException):
    pass


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the process die before its `step`-th system call that changes the folder or syncs it."""
    calls = 0

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == step:
                raise Crash
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr("os.fsync", counted(os.fsync))
    monkeypatch.setattr(Path, "rename", counted(Path.rename))


@pytest.mark.parametrize("step", range(1, 9))
def test_a_crash_at_any_step_of_a_commit_leaves_the_old_one_or_the_new_one(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    old = saved(registry, 5)
    staging = registry.open(10)
    files = fill(staging)
    crash_at(monkeypatch, step)
    with pytest.raises(Crash):
        registry.commit(staging, manifest(10), files)
    monkeypatch.undo()
    renamed = step == 8  # only the last sync of the folder itself was left
    assert registry.sweep() == ([] if renamed else ["step-00000010.attempt-1"])
    assert names(registry) == [old.name, "step-00000010"][: 1 + renamed]
    newest, refused = registry.newest_valid()
    assert newest is not None
    assert (newest.manifest.iteration, refused) == (10 if renamed else 5, [])


def test_a_commit_takes_eight_such_steps(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = registry.open(10)
    files = fill(staging)
    crash_at(monkeypatch, 9)
    registry.commit(staging, manifest(10), files)


def test_sweeping_takes_what_interrupted_saves_and_prunings_left(registry: Registry) -> None:
    kept = saved(registry, 5)
    registry.open(6)
    saved(registry, 4).folder.rename(registry.folder / "step-00000004.pruned-1")
    (registry.folder / "my notes").mkdir()
    assert registry.sweep() == ["step-00000004.pruned-1", "step-00000006.attempt-1"]
    assert sorted(path.name for path in registry.folder.iterdir()) == ["my notes", kept.name]


def test_removed_checkpoints_are_gone(registry: Registry) -> None:
    first, second = saved(registry, 5), saved(registry, 6)
    registry.remove([first])
    assert [path.name for path in registry.folder.iterdir()] == [second.name]


def test_a_crash_while_pruning_leaves_no_half_checkpoint(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = saved(registry, 5), saved(registry, 6)
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: (_ for _ in ()).throw(Crash))
    with pytest.raises(Crash):
        registry.remove([first])
    assert names(registry) == [second.name]
    monkeypatch.undo()
    assert registry.sweep() == ["step-00000005.pruned-1"]


def test_what_was_left_of_a_pruning_does_not_stop_the_next(registry: Registry) -> None:
    first = saved(registry, 5)
    shutil.copytree(first.folder, first.folder.with_name("step-00000005.pruned-1"))
    registry.remove([first])
    assert names(registry) == []
    assert registry.sweep() == ["step-00000005.pruned-1"]


def test_a_disk_that_refuses_to_remove_is_told(registry: Registry) -> None:
    first = saved(registry, 5)
    shutil.rmtree(first.folder)
    with pytest.raises(CheckpointError) as caught:
        registry.remove([first])
    assert str(caught.value) == "checkpoint step-00000005: can't be removed: No such file or directory"


# ---------------------------------------------------------------- damage of every kind
def flip_a_bit(folder: Path) -> str:
    path = folder / "data" / "a"
    content = bytearray(path.read_bytes())
    content[3] ^= 4
    path.write_bytes(content)
    return "data/a is not what was written: its sha256 differs"


def truncate(folder: Path) -> str:
    (folder / "data" / "a").write_bytes(b"")
    return "data/a has 0 bytes, its manifest says 34"


def delete(folder: Path) -> str:
    (folder / "ranks" / "r").unlink()
    return "ranks/r can't be read: No such file or directory"


def swap_files(folder: Path) -> str:
    one, two = folder / "data" / "a", folder / "ranks" / "r"
    one_content, two_content = one.read_bytes(), two.read_bytes()
    one.write_bytes(two_content)
    two.write_bytes(one_content)
    return "data/a has 3 bytes, its manifest says 34"


def make_a_folder_of_it(folder: Path) -> str:
    (folder / "ranks" / "r").unlink()
    (folder / "ranks" / "r").mkdir()
    return "ranks/r has "


def spoil_the_manifest(folder: Path) -> str:
    (folder / "manifest.json").write_bytes(b"\xff\x00 no json")
    return "its manifest is missing or damaged"


def lose_the_manifest(folder: Path) -> str:
    (folder / "manifest.json").unlink()
    return "its manifest is missing or damaged"


def lose_a_file_from_the_manifest(folder: Path) -> str:
    data = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(data | {"files": 7}))
    return "its manifest is missing or damaged"


@pytest.mark.parametrize(
    "spoil",
    [
        flip_a_bit,
        truncate,
        delete,
        swap_files,
        make_a_folder_of_it,
        spoil_the_manifest,
        lose_the_manifest,
        lose_a_file_from_the_manifest,
    ],
)
def test_damage_is_found_and_the_one_before_is_taken(registry: Registry, spoil: Callable[[Path], str]) -> None:
    old, new = saved(registry, 5), saved(registry, 10)
    told = spoil(new.folder)
    newest, refused = registry.newest_valid()
    assert newest == old
    assert len(refused) == 1
    assert refused[0].startswith(f"checkpoint step-00000010: {told}")


def test_if_all_are_damaged_there_is_none_and_each_is_told(registry: Registry) -> None:
    for step in (5, 10):
        flip_a_bit(saved(registry, step).folder)
    newest, refused = registry.newest_valid()
    assert newest is None
    assert [text.split(":")[0] for text in refused] == ["checkpoint step-00000010", "checkpoint step-00000005"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.sampled_from(["data/a", "ranks/r"]), byte=st.integers(0, 2), mask=st.integers(1, 255))
def test_no_flipped_bit_is_ever_taken_for_what_was_written(
    registry: Registry, which: str, byte: int, mask: int
) -> None:
    shutil.rmtree(registry.folder, ignore_errors=True)
    path = saved(registry, 5).folder / which
    content = bytearray(path.read_bytes())
    content[byte] ^= mask
    path.write_bytes(content)
    assert registry.newest_valid()[0] is None
