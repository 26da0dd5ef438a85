"""The handler that evaluates: when, with which engine, and under which name."""

from typing import Any

import pytest

from orchestrator.errors import SpecError
from orchestrator.handlers import Evaluate


class FakeDriver:
    def __init__(self) -> None:
        self.listened: list[tuple[str, str]] = []
        self.evaluated: list[tuple[str, str | None]] = []

    def listen(self, event: object, handler: object, *, phase: str) -> None:
        self.listened.append((repr(event), phase))

    def evaluate(self, engine: str, *, prefix: str | None = None) -> dict[str, float]:
        self.evaluated.append((engine, prefix))
        return {}


def test_it_evaluates_before_all_others_of_every_nth_epoch() -> None:
    driver: Any = FakeDriver()
    Evaluate(every=3).attach(driver)
    assert driver.listened == [("EPOCH_COMPLETED(every=3)", "metrics")]


def test_it_names_the_engine_and_what_stands_before_its_metrics() -> None:
    driver: Any = FakeDriver()
    Evaluate()(driver)
    Evaluate("tester", prefix="test")(driver)
    assert driver.evaluated == [("evaluator", "validation"), ("tester", "test")]


@pytest.mark.parametrize("every", [0, 1.5, True])
def test_an_interval_that_is_none_is_refused(every: Any) -> None:
    with pytest.raises(
        SpecError, match=r"^Evaluate\(every\): expected a whole number of epochs of at least 1, received"
    ):
        Evaluate(every=every)
