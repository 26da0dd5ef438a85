"""The names that people use for a checkpoint."""

from typing import Any

import pytest

from orchestrator.checkpoints.references import best_in, find, registry_of
from orchestrator.checkpoints.registry import Registry
from orchestrator.errors import CheckpointError, SpecError
from tests.checkpoints import manifest
from workers.storage import Storage

RULE = {"metric": "acc", "mode": "max"}


def save(root: Storage, step: int, accuracy: float | None = None, rule: dict[str, str] | None = RULE) -> None:
    registry = Registry(root.child("digits/checkpoints"))
    metrics: dict[str, Any] = {} if accuracy is None else {"acc": accuracy}
    registry.commit(registry.open(step), manifest(step, metrics=metrics, best=rule), [])


@pytest.fixture
def root(storage: Storage) -> Storage:
    for step, accuracy in ((5, 0.5), (10, 0.9), (15, 0.7)):
        save(storage, step, accuracy)
    return storage


def refusal(reference: str, root: Storage) -> str:
    with pytest.raises(SpecError) as caught:
        find(reference, root)
    return str(caught.value)


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("digits", "step-00000015"),
        ("digits@latest", "step-00000015"),
        ("digits@best", "step-00000010"),
        ("digits@5", "step-00000005"),
        ("digits@00000010", "step-00000010"),
        ("digits@step-00000010", "step-00000010"),
    ],
)
def test_a_checkpoint_is_named_by_run_and_step(root: Storage, reference: str, name: str) -> None:
    found = find(reference, root)
    assert found.name == name
    assert found.url == root.locate(f"digits/checkpoints/{name}")


def test_a_checkpoint_is_named_by_its_path_or_url(root: Storage) -> None:
    url = root.locate("digits/checkpoints/step-00000010")
    for reference in (url, url + "/"):
        found = find(reference, root.child("elsewhere"))
        assert (found.name, found.url, found.manifest.iteration) == ("step-00000010", url, 10)


def test_a_run_is_named_by_its_path_or_url_too(root: Storage) -> None:
    assert find(f"{root.locate('digits')}@best", root.child("elsewhere")).name == "step-00000010"
    assert registry_of(root.locate("digits"), root).storage.url == registry_of("digits", root).storage.url


def test_the_newer_one_of_a_step_is_meant(root: Storage) -> None:
    save(root, 5)
    assert find("digits@5", root).name in ("step-00000005-2", "step-00000005")
    assert find("digits@step-00000005-2", root).manifest.iteration == 5


def test_a_run_that_is_not_there_is_told(root: Storage) -> None:
    assert refusal("digit@best", root) == (
        f"run 'digit': expected a run in {root.url}, received none of that name; did you mean digits?"
    )


def test_a_folder_that_is_no_run_is_told_to_be_that(root: Storage) -> None:
    root.claim("notes/a.txt", b"")
    with pytest.raises(SpecError) as caught:
        registry_of(root.locate("notes"), root.child("elsewhere"))
    assert str(caught.value) == (
        f"run {root.locate('notes')!r}: expected a run in {root.url}, received a folder of that name that is none; "
        "write the id of a run, or the path or URL of its folder"
    )


@pytest.mark.parametrize("which", ["7", "first", "-1", "step-5"])
def test_a_step_that_is_not_there_is_told_with_those_that_are(root: Storage, which: str) -> None:
    assert refusal(f"digits@{which}", root) == (
        f"checkpoint 'digits@{which}': expected the step of a checkpoint, received '{which}'; "
        "there are step-00000005, step-00000010, step-00000015"
    )


def test_a_rule_whose_metric_no_checkpoint_has_is_told(root: Storage) -> None:
    save(root, 20, rule={"metric": "loss", "mode": "min"})
    assert refusal("digits@best", root).startswith(
        "checkpoint 'digits@best': expected a checkpoint that was made where loss was measured, received none; "
        "evaluate where you save, or name the step: step-00000005"
    )


def test_a_run_that_does_not_tell_its_best_is_told(root: Storage) -> None:
    save(root, 20, rule=None)
    assert refusal("digits@best", root) == (
        "checkpoint 'digits@best': expected a run that says which metric tells its best checkpoint, received one that "
        "does not; give checkpoint.best in the job file, or name the step: step-00000005, step-00000010, "
        "step-00000015, step-00000020"
    )


def test_the_newest_checkpoint_tells_what_the_best_is(root: Storage) -> None:
    save(root, 20, 0.1, {"metric": "acc", "mode": "min"})
    assert find("digits@best", root).name == "step-00000020"
    assert best_in([]) is None


def test_a_path_without_a_checkpoint_is_told(root: Storage) -> None:
    url = root.locate("digits")
    assert refusal(url, root) == (
        f"checkpoint '{url}': expected a folder with a manifest.json, received none; "
        "write RUN, RUN@latest, RUN@best, RUN@STEP, or the path or URL of a checkpoint"
    )


def test_a_damaged_manifest_is_told(root: Storage) -> None:
    root.replace("digits/checkpoints/step-00000010/manifest.json", b"{")
    with pytest.raises(CheckpointError, match=r"^checkpoint .*/step-00000010: no manifest: JSONDecodeError"):
        find(root.locate("digits/checkpoints/step-00000010"), root)
