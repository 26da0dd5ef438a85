"""Time limits, with a clock that the tests turn."""

from typing import Any

import pytest

from workers import Engine
from workers.handlers import TimeLimit


def engine(limit: TimeLimit, now: list[float]) -> Engine:
    def step(engine: Engine, batch: object) -> None:
        now[0] += 1.0

    made = Engine(step)
    limit.attach(made)
    return made


def test_training_ends_after_the_iteration_in_which_the_time_is_over() -> None:
    now = [100.0]
    assert engine(TimeLimit(5.0, clock=lambda: now[0]), now).run(range(20)).iteration == 6  # from the first one on


@pytest.mark.parametrize(("of", "iteration"), [("run", 7), ("start", 10)])
def test_time_of_earlier_starts_counts_for_a_run_not_for_a_start(of: Any, iteration: int) -> None:
    now = [0.0]
    first = engine(TimeLimit(5.0, of=of, clock=lambda: now[0]), now)
    first.run(None, max_iters=4, epoch_length=20)
    saved = first.state_dict()
    now[0] += 1000.0  # between two starts
    second = engine(TimeLimit(5.0, of=of, clock=lambda: now[0]), now)
    second.load_state_dict(saved)
    assert second.run(None, max_iters=20, epoch_length=20).iteration == iteration


def test_it_stops_once_though_it_is_asked_again() -> None:
    class Driver:
        reasons: tuple[str, ...] = ()

        def terminate(self, reason: str) -> None:
            self.reasons += (reason,)

    now, driver = [0.0], Driver()
    limit = TimeLimit(2.0, clock=lambda: now[0])
    for _ in range(5):
        limit.tick(driver)  # type: ignore[arg-type]
        now[0] += 1.0
    assert driver.reasons == ("the time limit of 2 s is over",)


@pytest.mark.parametrize(("given", "name"), [({"seconds": -1}, "seconds"), ({"seconds": 1, "of": "day"}, "of")])
def test_arguments_that_cant_be_used_are_refused(given: Any, name: str) -> None:
    with pytest.raises(ValueError, match=rf"TimeLimit\({name}\): expected"):
        TimeLimit(**given)
