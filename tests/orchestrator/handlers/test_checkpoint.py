"""The handler that saves: when, which arguments it takes, and what it keeps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoints.manifest import Manifest
from orchestrator.checkpoints.registry import Registry
from orchestrator.errors import SpecError
from orchestrator.handlers import Best, Checkpoint
from workers.locations import storage_at
from workers.state import State


class FakeDriver:
    """Commits an empty checkpoint at each call, with the metrics of that moment."""

    def __init__(self, folder: Path) -> None:
        self.registry = Registry(storage_at(folder))
        self.metrics: dict[str, float] = {}
        self.state = State()
        self.notes: list[tuple[str, object]] = []
        self.listened: list[tuple[str, str, bool]] = []
        self.waiting: list[Callable[[], None]] = []
        self.handler: Any = None
        self.last: int | None = None

    def checkpoint(self) -> str:
        staging = self.registry.open(self.state.iteration)
        manifest = Manifest(
            run="r", epoch=1, iteration=self.state.iteration, epoch_length=1, world_size=1, time=0.0,
            metrics=dict(self.metrics),
        )  # fmt: skip
        committed = self.registry.commit(staging, manifest, [])
        self.last = self.state.iteration
        self.handler.committed(self, committed)
        return committed.name

    def saved_at(self) -> int | None:
        return self.last

    def note(self, event: str, **fields: object) -> None:
        self.notes.append((event, fields["checkpoint"]))

    def listen(self, event: object, handler: object, *, phase: str, blocking: bool) -> None:
        self.listened.append((repr(event), phase, blocking))

    def at_boundary(self, function: Callable[[], None]) -> None:
        if function not in self.waiting:
            self.waiting.append(function)


@pytest.fixture
def driver(tmp_path: Path) -> Any:
    return FakeDriver(tmp_path / "checkpoints")


def kept(driver: FakeDriver) -> list[int]:
    return [checkpoint.manifest.iteration for checkpoint in driver.registry.committed()]


def save(driver: Any, handler: Checkpoint, *scores: float) -> None:
    driver.handler = handler
    for score in scores:
        driver.state.iteration += 1
        driver.metrics["score"] = score
        handler(driver)


# ---------------------------------------------------------------- when
@pytest.mark.parametrize(
    ("every", "events"),
    [
        (5, ["EPOCH_COMPLETED(every=5)"]),
        ({"epochs": 2}, ["EPOCH_COMPLETED(every=2)"]),
        ({"iterations": 500}, ["ITERATION_COMPLETED(every=500)", "EPOCH_COMPLETED"]),
    ],
)
def test_it_saves_after_all_others_of_every_nth_event_and_at_the_end(
    driver: Any, every: Any, events: list[str]
) -> None:
    Checkpoint(every=every).attach(driver)
    assert driver.listened == [(event, "gate", True) for event in ["COMPLETED", *events]]


def test_what_is_due_by_the_clock_is_saved_at_the_next_boundary(driver: Any) -> None:
    now = [100.0]
    handler = driver.handler = Checkpoint(every={"seconds": 10.0}, clock=lambda: now[0])
    handler.attach(driver)
    assert driver.listened == [("COMPLETED", "gate", True)]
    driver.state.iteration = 7
    for now[0], due in ((100.0, 0), (109.9, 0), (110.0, 1), (119.0, 1), (120.5, 1)):
        handler.tick(driver)
        assert len(driver.waiting) == due
    driver.waiting[0]()
    assert kept(driver) == [7]


def test_the_clock_means_nothing_to_what_counts(driver: Any) -> None:
    handler = Checkpoint(clock=lambda: pytest.fail("looked at the clock"))
    handler.tick(driver)


@pytest.mark.parametrize(("saved", "reached", "more"), [(3, 3, []), (3, 4, [4]), (None, 4, [4]), (None, 0, [])])
def test_at_the_end_what_came_after_the_last_save_is_saved(
    driver: Any, saved: int | None, reached: int, more: list[int]
) -> None:
    handler = driver.handler = Checkpoint()
    if saved is not None:
        driver.state.iteration = saved
        handler(driver)
    before = kept(driver)
    driver.state.iteration = reached
    handler.at_end(driver)
    assert kept(driver) == before + more


def test_at_the_end_what_could_not_be_saved_before_is_saved(driver: Any) -> None:
    handler = driver.handler = Checkpoint()
    driver.state.iteration = 3
    handler(driver)
    driver.last = None  # it came to nothing, and the run went on without
    handler.at_end(driver)
    assert [checkpoint.name for checkpoint in driver.registry.committed()] == ["step-00000003", "step-00000003-2"]


# ---------------------------------------------------------------- what stays
def test_the_newest_are_kept_and_prunings_noted(driver: Any) -> None:
    save(driver, Checkpoint(keep=2), 1, 2, 3, 4)
    assert kept(driver) == [3, 4]
    assert driver.notes == [("CHECKPOINT_PRUNED", "step-00000001"), ("CHECKPOINT_PRUNED", "step-00000002")]


@pytest.mark.parametrize(("best", "expected"), [(Best("score"), [2, 4]), (Best("score", "min"), [3, 4])])
def test_the_best_is_kept_as_well(driver: Any, best: Best, expected: list[int]) -> None:
    save(driver, Checkpoint(keep=1, best=best), 0.5, 0.9, 0.1, 0.5)
    assert kept(driver) == expected


def test_the_first_of_equals_is_the_best(driver: Any) -> None:
    save(driver, Checkpoint(keep=1, best=Best("score")), 0.9, 0.9, 0.1)
    assert kept(driver) == [1, 3]


# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("known", "hint"),
    [
        ({"validation/accuracy": 1.0}, "did you mean 'validation/accuracy'?"),
        ({"zzz": 1.0, "yyy": 1.0}, "there are 'yyy', 'zzz'"),
        ({}, "there are none"),
    ],
)
def test_a_metric_that_is_not_there_is_refused_with_what_is(driver: Any, known: dict[str, float], hint: str) -> None:
    driver.metrics, driver.handler = known, Checkpoint(best=Best("validation/acuracy"))
    with pytest.raises(SpecError) as caught:
        driver.handler(driver)
    assert str(caught.value) == (
        f"checkpoint.best.metric: expected the name of a reduced metric, received 'validation/acuracy'; {hint}"
    )


@pytest.mark.parametrize("unit", ["epochs", "iterations"])
def test_a_metric_that_is_no_number_is_refused(driver: Any, unit: str) -> None:
    driver.metrics, driver.handler = {"q": "high"}, Checkpoint(every={unit: 1}, best=Best("q"))
    with pytest.raises(SpecError) as caught:
        driver.handler(driver)
    assert str(caught.value) == (
        "checkpoint.best.metric 'q': expected a number, received 'high' (str); set it with float(...), or name another "
        "metric"
    )


def test_in_the_middle_of_an_epoch_a_metric_may_be_missing_yet(driver: Any) -> None:
    driver.handler = Checkpoint(every={"iterations": 1}, best=Best("validation/accuracy"))
    driver.state.iteration = 1
    driver.handler(driver)
    assert kept(driver) == [1]


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_keep_is_a_whole_number_and_positive(value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        Checkpoint(keep=value)
    assert str(caught.value) == (
        f"Checkpoint(keep): expected a whole number of at least 1, received {value!r}; write how many of the newest "
        "checkpoints shall stay"
    )


@pytest.mark.parametrize(
    "value",
    [
        *(0, -1, 1.5, True, "3", None, {}, {"epochs": 1, "seconds": 2.0}, {"hours": 1}, {"epochs": 0}),
        *({"iterations": 1.5}, {"seconds": 0.0}, {"seconds": float("inf")}, {"seconds": "1"}),
    ],
)
def test_every_is_a_number_or_a_mapping_of_one(value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        Checkpoint(every=value)
    assert str(caught.value) == (
        "Checkpoint(every): expected a whole number of at least 1, or a mapping with one of epochs, iterations and "
        f"seconds, received {value!r}; write for example every=1 or every={{'iterations': 500}}"
    )


def test_a_save_that_failed_stops_or_does_not() -> None:
    assert [Checkpoint().on_save_error, Checkpoint(on_save_error="continue").on_save_error] == ["stop", "continue"]
    with pytest.raises(SpecError) as caught:
        Checkpoint(on_save_error="ignore")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "Checkpoint(on_save_error): expected 'stop' or 'continue', received 'ignore'; write 'continue' to train on "
        "without the checkpoint, or leave it out"
    )


def test_best_is_the_greatest_or_the_smallest() -> None:
    with pytest.raises(SpecError, match=r"^Best\(mode\): expected 'max' or 'min', received 'most'; write 'max' if a"):
        Best("loss", "most")  # type: ignore[arg-type]
