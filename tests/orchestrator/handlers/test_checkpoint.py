"""The handler that saves: which arguments it takes, and what it keeps."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoints.manifest import Manifest
from orchestrator.checkpoints.registry import Registry
from orchestrator.errors import SpecError
from orchestrator.handlers import Best, Checkpoint


class FakeDriver:
    """Commits an empty checkpoint at each call, with the metrics of that moment."""

    def __init__(self, folder: Path) -> None:
        self.registry = Registry(folder)
        self.metrics: dict[str, float] = {}
        self.step = 0
        self.notes: list[tuple[str, object]] = []
        self.listened: list[tuple[str, str]] = []

    def checkpoint(self) -> str:
        self.step += 1
        staging = self.registry.open(self.step)
        manifest = Manifest(
            run="r", epoch=1, iteration=self.step, epoch_length=1, world_size=1, time=0.0, metrics=dict(self.metrics)
        )
        return self.registry.commit(staging, manifest, []).name

    def note(self, event: str, **fields: object) -> None:
        self.notes.append((event, fields["checkpoint"]))

    def listen(self, event: object, handler: object, *, phase: str) -> None:
        self.listened.append((repr(event), phase))


@pytest.fixture
def driver(tmp_path: Path) -> Any:
    return FakeDriver(tmp_path / "checkpoints")


def kept(driver: FakeDriver) -> list[int]:
    return [checkpoint.manifest.iteration for checkpoint in driver.registry.committed()]


def save(driver: Any, handler: Checkpoint, *scores: float) -> None:
    for score in scores:
        driver.metrics["score"] = score
        handler(driver)


def test_it_saves_after_all_others_of_every_nth_epoch(driver: Any) -> None:
    Checkpoint(every=5).attach(driver)
    assert driver.listened == [("EPOCH_COMPLETED(every=5)", "gate")]


def test_the_newest_are_kept_and_prunings_noted(driver: Any) -> None:
    save(driver, Checkpoint(keep=2), 1, 2, 3, 4)
    assert kept(driver) == [3, 4]
    assert driver.notes == [("CHECKPOINT_PRUNED", "step-00000001"), ("CHECKPOINT_PRUNED", "step-00000002")]


@pytest.mark.parametrize(("best", "expected"), [(Best("score"), [2, 4]), (Best("score", "min"), [3, 4])])
def test_the_best_is_kept_as_well(driver: Any, best: Best, expected: list[int]) -> None:
    save(driver, Checkpoint(keep=1, best=best), 0.5, 0.9, 0.1, 0.5)
    assert kept(driver) == expected


@pytest.mark.parametrize(
    ("known", "hint"),
    [
        ({"validation/accuracy": 1.0}, "did you mean 'validation/accuracy'?"),
        ({"zzz": 1.0, "yyy": 1.0}, "there are 'yyy', 'zzz'"),
        ({}, "there are none"),
    ],
)
def test_a_metric_that_is_not_there_is_refused_with_what_is(driver: Any, known: dict[str, float], hint: str) -> None:
    driver.metrics = known
    with pytest.raises(SpecError) as caught:
        Checkpoint(best=Best("validation/acuracy"))(driver)
    assert str(caught.value) == (
        f"checkpoint.best.metric: expected the name of a reduced metric, received 'validation/acuracy'; {hint}"
    )


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
@pytest.mark.parametrize("name", ["every", "keep"])
def test_numbers_are_whole_and_positive(name: str, value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        Checkpoint(**{name: value})
    assert str(caught.value) == f"Checkpoint({name}): expected a whole number of at least 1, received {value!r}"


def test_best_is_the_greatest_or_the_smallest() -> None:
    with pytest.raises(SpecError, match=r"^Best\(mode\): expected 'max' or 'min', received 'most'$"):
        Best("loss", "most")  # type: ignore[arg-type]
