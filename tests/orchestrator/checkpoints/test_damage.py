"""Every kind of file of a real checkpoint, damaged in every way: it is named, and the one before it is taken."""

import uuid
from collections.abc import Callable, Iterator

import pytest

from orchestrator.checkpoints.manifest import NAME
from orchestrator.checkpoints.registry import Registry
from orchestrator.errors import CheckpointError
from orchestrator.resume import Resume, newest, way_on
from tests.checkpoints import FILES, committed
from tests.object_store import BUCKET
from workers.locations import storage_at
from workers.storage import Storage

OLD, NEW = "step-00000005", "step-00000010"
EVERY = [*FILES, NAME]


@pytest.fixture(scope="module", params=["folder", "s3"])
def there(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Two checkpoints, made once: each test repairs what it damaged."""
    if request.param == "s3":
        request.getfixturevalue("object_store")
    root = f"s3://{BUCKET}/{uuid.uuid4().hex}" if request.param == "s3" else tmp_path_factory.mktemp("damage")
    made = Registry(storage_at(root).child("checkpoints"))
    for step in (5, 10):
        committed(made, step)
    return made.storage


@pytest.fixture
def registry(there: Storage) -> Registry:
    """The checkpoints, seen anew."""
    return Registry(there)


@pytest.fixture
def storage(registry: Registry) -> Iterator[Storage]:
    """The checkpoints' storage; what a test changes in it is changed back."""
    storage = registry.storage
    before = {path: storage.read(path) for path in storage.files()}
    yield storage
    for path in storage.files():
        if path not in before:
            storage.remove(path)
    for path, content in before.items():
        if not storage.exists(path) or storage.read(path) != content:
            with storage.create(path) as file:
                file.write(content)


# ---------------------------------------------------------------- kinds of damage: (storage, path within a checkpoint)
def flip_a_bit(storage: Storage, path: str) -> None:
    content = bytearray(storage.read(f"{NEW}/{path}"))
    content[len(content) // 2] ^= 16
    storage.replace(f"{NEW}/{path}", bytes(content))


def truncate(storage: Storage, path: str) -> None:
    storage.replace(f"{NEW}/{path}", storage.read(f"{NEW}/{path}")[:-2])


def empty(storage: Storage, path: str) -> None:
    storage.replace(f"{NEW}/{path}", b"")


def remove(storage: Storage, path: str) -> None:
    storage.remove(f"{NEW}/{path}")


def lengthen(storage: Storage, path: str) -> None:
    storage.replace(f"{NEW}/{path}", storage.read(f"{NEW}/{path}") + b"\0")


def fill_with_garbage(storage: Storage, path: str) -> None:
    size = storage.size(f"{NEW}/{path}")
    storage.replace(f"{NEW}/{path}", (b"garbage!" * size)[:size])


def take_that_of_the_old_checkpoint(storage: Storage, path: str) -> None:
    storage.replace(f"{NEW}/{path}", storage.read(f"{OLD}/{path}"))


KINDS = [flip_a_bit, truncate, empty, remove, lengthen, fill_with_garbage, take_that_of_the_old_checkpoint]


@pytest.mark.parametrize("path", EVERY)
@pytest.mark.parametrize("damage", KINDS, ids=lambda kind: kind.__name__)
def test_damage_is_named_and_the_one_before_is_taken(
    registry: Registry, storage: Storage, damage: Callable[[Storage, str], None], path: str
) -> None:
    before = storage.read(f"{NEW}/{path}")
    damage(storage, path)
    found, refused = registry.newest_valid()
    assert found is not None
    if storage.exists(f"{NEW}/{path}") and storage.read(f"{NEW}/{path}") == before:
        assert (found.name, refused) == (NEW, [])  # an index is the same for the same shapes
        return
    assert found.name == OLD
    if path == NAME and damage is remove and not storage.moves:
        assert refused == []  # on an object store it is as if it had never been committed
        return
    (one,) = refused
    told = str(one)
    assert told.startswith(f"checkpoint {NEW}: ")
    assert path in told or (path == NAME and ("its manifest is" in told or "sha256 differs" in told))


@pytest.mark.parametrize(
    ("one", "other"), [("data/__0_0.distcp", "data/__1_0.distcp"), ("ranks/rank-0000.pt", "ranks/rank-0001.pt")]
)
def test_files_of_two_ranks_that_were_swapped_are_both_found(
    registry: Registry, storage: Storage, one: str, other: str
) -> None:
    first, second = storage.read(f"{NEW}/{one}"), storage.read(f"{NEW}/{other}")
    storage.replace(f"{NEW}/{one}", second)
    storage.replace(f"{NEW}/{other}", first)
    found, (told,) = registry.newest_valid()
    assert found is not None
    assert found.name == OLD
    assert str(told).startswith(f"checkpoint {NEW}: {one} ")


def test_a_file_beside_those_of_the_manifest_is_no_damage(registry: Registry, storage: Storage) -> None:
    storage.replace(f"{NEW}/notes.txt", b"mine")
    found, refused = registry.newest_valid()
    assert found is not None
    assert (found.name, refused) == (NEW, [])


# ---------------------------------------------------------------- what a run makes of it
def test_the_one_before_is_taken_and_told(registry: Registry, storage: Storage) -> None:
    remove(storage, "shared.pt")
    told: list[str] = []
    point = newest(registry, Resume(), told.append)
    assert point is not None
    aside = f", and this one is now {NEW}.damaged-1" if storage.moves else ""
    assert (point.name, told) == (OLD, [f"checkpoint {NEW}: shared.pt is missing; trying the one before it{aside}"])
    if storage.moves:
        storage.move(f"{NEW}.damaged-1", NEW)


def test_a_storage_that_can_not_be_read_says_nothing_of_the_way_on(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(registry.storage, "names", refuse)
    assert way_on(registry, 10) == "nothing was saved"


@pytest.mark.parametrize("path", EVERY)
def test_who_is_strict_is_told_what_is_damaged_and_what_to_do(registry: Registry, storage: Storage, path: str) -> None:
    flip_a_bit(storage, path)
    with pytest.raises(CheckpointError) as caught:
        newest(registry, Resume(strict=True), pytest.fail)
    text = str(caught.value)
    assert text.startswith(f"checkpoint {NEW}: ")
    assert text.endswith(
        "; restore the files, leave out --strict to go on from the one before it, or start anew with --fresh"
    )


def test_who_is_strict_has_nothing_against_a_whole_one(registry: Registry, storage: Storage) -> None:
    point = newest(registry, Resume(strict=True), pytest.fail)
    assert point is not None
    assert point.name == NEW


@pytest.mark.parametrize("strict", [False, True])
def test_if_nothing_is_left_the_run_does_not_start_anew_by_itself(
    registry: Registry, storage: Storage, strict: bool
) -> None:
    truncate(storage, "index.json")
    storage.replace(f"{OLD}/{NAME}", b"{")
    with pytest.raises(CheckpointError) as caught:
        newest(registry, Resume(strict=strict), pytest.fail)
    text = str(caught.value)
    assert f"checkpoint {NEW}: index.json has " in text
    assert f"; checkpoint {OLD}: its manifest is damaged: no manifest: JSONDecodeError" in text
    assert text.endswith("; no other is left: restore the files, or start anew with --fresh")
    assert [name for name, _ in registry.found()] == [OLD, NEW]  # nothing is set aside
