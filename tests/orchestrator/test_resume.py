"""Where a run begins."""

import pytest

from orchestrator.checkpoints.registry import Registry
from orchestrator.errors import CheckpointError, SpecError
from orchestrator.resume import (
    Resume,
    StartFrom,
    changed_versions,
    newest,
    place_in_words,
    set_aside,
    starting_point,
)
from tests.checkpoints import committed
from workers.parcels import LoadPoint
from workers.storage import Storage

NEW = "step-00000010"


@pytest.fixture
def root(storage: Storage) -> Storage:
    """Runs: one of them has a checkpoint."""
    committed(Registry(storage.child("base/checkpoints")), 5, state={"model": 44, "optimizer": 0})
    return storage


def test_to_resume_is_auto_or_never() -> None:
    assert (Resume().mode, Resume(mode="never").strict) == ("auto", False)
    with pytest.raises(SpecError) as caught:
        Resume(mode="maybe")
    assert str(caught.value) == (
        "orchestrator.run: resume: expected 'auto' or 'never', received 'maybe'; "
        "leave it out to go on from the newest checkpoint"
    )


def test_a_run_without_checkpoints_begins_at_nothing(storage: Storage) -> None:
    assert newest(Registry(storage), Resume(strict=True), pytest.fail) is None


def test_ranks_that_are_others_in_number_are_told(storage: Storage) -> None:
    point = committed(Registry(storage), 5)
    assert place_in_words(point, 2) == f"checkpoint step-00000005, epoch {point.manifest.epoch}"
    assert place_in_words(point, 3).endswith(", whose ranks were 2, and are 3 now")


# ---------------------------------------------------------------- past what is damaged
def test_what_was_passed_over_is_no_checkpoint_any_more_and_stays(storage: Storage) -> None:
    registry = Registry(storage)
    committed(registry, 5)
    committed(registry, 10)
    storage.remove(f"{NEW}/shared.pt")
    before = len(storage.files())
    newest(registry, Resume(), lambda _: None)
    assert [checkpoint.name for checkpoint in registry.committed()] == ["step-00000005"]
    assert registry.newest_valid()[1] == []
    assert registry.sweep() == []
    assert len(storage.files()) == before


def test_the_next_one_of_the_same_step_is_the_newest_and_is_set_aside_under_a_name_of_its_own(storage: Storage) -> None:
    registry = Registry(storage)
    committed(registry, 5)
    committed(registry, 10)
    for number in (1, 2):
        storage.remove(f"{registry.committed()[-1].name}/shared.pt")
        newest(registry, Resume(), lambda _: None)
        assert committed(registry, 10).name == (NEW if storage.moves else f"{NEW}-{number + 1}")
    assert [checkpoint.manifest.iteration for checkpoint in registry.committed()] == [5, 10]
    aside = [name for name in storage.names() if "damaged" in name]
    assert aside == ([f"{NEW}.damaged-1", f"{NEW}.damaged-2"] if storage.moves else [])


# ---------------------------------------------------------------- from another run
def test_a_new_run_starts_from_entries_of_another(root: Storage) -> None:
    point = starting_point(StartFrom(checkpoint="base"), root)
    assert point == LoadPoint(url=root.locate("base/checkpoints/step-00000005"), world_size=2, entries=("model",))


def test_an_entry_that_the_other_run_lacks_is_named(root: Storage) -> None:
    with pytest.raises(SpecError) as caught:
        starting_point(StartFrom(checkpoint="base@5", state=("model", "head")), root)
    assert str(caught.value) == (
        "start_from.state: expected entries that base@5 holds, received 'head'; it holds 'model', 'optimizer'"
    )


def test_a_damaged_checkpoint_of_the_other_run_is_not_taken(root: Storage) -> None:
    root.remove("base/checkpoints/step-00000005/shared.pt")
    with pytest.raises(CheckpointError) as caught:
        starting_point(StartFrom(checkpoint="base@5"), root)
    assert str(caught.value) == ("checkpoint base@5: shared.pt is missing; name another one in start_from.checkpoint")


# ---------------------------------------------------------------- aside
def test_what_a_run_has_is_moved_aside_and_its_lease_stays(root: Storage) -> None:
    for number in (1, 2):
        root.claim(f"base/lease/{number:08d}.json", b"x")
        root.replace("base/spec.yaml", b"spec")
        assert set_aside(root, "base") == f"base.old-{number}"
    assert [path for path in root.files("base")] == ["lease/00000001.json", "lease/00000002.json"]
    assert root.files("base.old-2") == ["spec.yaml"]
    found, refused = Registry(root.child("base.old-1/checkpoints")).newest_valid()
    assert found is not None
    assert refused == []


def test_a_run_that_has_nothing_is_not_moved(storage: Storage) -> None:
    assert set_aside(storage, "none") is None
    storage.claim("none/lease/00000001.json", b"x")
    assert set_aside(storage, "none") is None
    assert storage.names() == ["none"]


# ---------------------------------------------------------------- versions
@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        ({"torch": "2.12", "ray": "2.60"}, {"torch": "2.13", "ray": "2.60"}, "torch 2.12 → 2.13"),
        ({"torch": "2.12", "ray": "2.59"}, {"torch": "2.13", "ray": "2.60"}, "ray 2.59 → 2.60, torch 2.12 → 2.13"),
        ({"torch": "2.12"}, {"torch": "2.12", "ray": "2.60"}, None),
        ({"gone": "1"}, {}, None),
        ({}, {"torch": "2.12"}, None),
    ],
)
def test_versions_that_changed_are_told(then: dict[str, str], now: dict[str, str], told: str | None) -> None:
    assert changed_versions(then, now) == told
