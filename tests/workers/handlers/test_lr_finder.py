"""A learning rate is looked for before training, and nothing else changes. Several ranks: `test_finders`."""

import math
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR

from tests.workers.handlers.regression import regression
from workers import Events, Worker
from workers.handlers import LRFinder, LRSchedule
from workers.handlers.lr_finder import steepest


def test_the_rate_lies_where_the_loss_falls_and_below_where_it_diverges() -> None:
    made = regression()
    finder = LRFinder(1e-4, 100.0, iterations=60, optimizer=made.optimizer)
    finder.attach(made.trainer, state=made.state)
    made.train()
    assert finder.suggestion is not None
    assert 1e-3 < finder.suggestion < 1.0
    assert len(finder.losses) == len(finder.rates) < 60  # it ended early, since the loss diverged
    assert finder.rates[0] == 1e-4
    assert all(b > a for a, b in zip(finder.rates, finder.rates[1:], strict=False))
    assert made.optimizer.param_groups[0]["lr"] == finder.suggestion


@pytest.mark.parametrize("worker", [None, Worker()])
def test_what_was_tried_is_undone_to_the_bit(worker: Worker | None) -> None:
    calm = regression(worker=worker).train(2).numbers
    made = regression(worker=worker)
    given: dict[str, Any] = {} if worker else {"optimizer": made.optimizer}
    finder = LRFinder(1e-5, 1e-2, iterations=20, apply=False, **given)
    finder.attach(made.trainer, state=None if worker else made.state)
    assert made.train(2).numbers == calm
    assert len(finder.losses) == 20
    if worker is not None:
        assert (worker.samples, worker.batch_size) == (96 * 2, 8)  # of both trainings, not of the search


def test_the_loss_may_lie_anywhere_in_the_output() -> None:
    made = regression()
    finder = LRFinder(1e-4, 1e-3, iterations=5, optimizer=made.optimizer, loss=lambda output: output["loss"] * 0 + 7)
    finder.attach(made.trainer, state=made.state)
    made.train()
    assert finder.losses == pytest.approx([7.0] * 5)


def test_the_steepest_fall_is_found_and_a_loss_that_never_falls_has_none() -> None:
    assert steepest([1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 1.0, math.nan]) == 2.0
    assert steepest([1.0, 2.0, 3.0, 4.0], [5.0, 4.9, 4.0, 1.0]) == 3.0
    assert steepest([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) is None
    assert steepest([], []) is None


def test_what_cant_be_searched_is_refused() -> None:
    made = regression()
    LRFinder(optimizer=made.optimizer).attach(made.trainer)
    with pytest.raises(ValueError, match=r"LRFinder\(state\): .* write state=\{'model': model"):
        made.train()
    made = regression()
    LRFinder(optimizer=made.optimizer).attach(made.trainer, state=made.state)
    with pytest.raises(ValueError, match=r"LRFinder: expected data that can be read more than once, .*list_iterator"):
        made.trainer.run(iter(made.data), epoch_length=2)
    with pytest.raises(
        ValueError, match=r"LRFinder\(highest\): expected a rate not below the lowest, which is 0.1, received 0.01"
    ):
        LRFinder(0.1, 0.01)
    made = regression()
    finder = LRFinder(optimizer=made.optimizer, loss=lambda output: "none")
    finder.attach(made.trainer, state=made.state)
    with pytest.raises(ValueError, match=r"LRFinder\(loss\): expected a number in the output, received str"):
        made.train()
    assert torch.isfinite(torch.tensor(made.numbers)).all()


@pytest.mark.parametrize("first", ["finder", "schedule"])
def test_a_schedule_begins_with_the_rate_that_was_found_in_either_order(first: str) -> None:
    made = regression()
    finder = LRFinder(1e-4, 1.0, iterations=30, optimizer=made.optimizer)
    schedule = LRSchedule(lambda o: ConstantLR(o, 0.5, 100), warm_up=2, optimizer=made.optimizer)
    attaches = [lambda: finder.attach(made.trainer, state=made.state), lambda: schedule.attach(made.trainer)]
    for attach in attaches if first == "finder" else reversed(attaches):
        attach()
    seen: list[float] = []
    made.trainer.add_event_handler(Events.ITERATION_STARTED, lambda: seen.append(made.optimizer.param_groups[0]["lr"]))
    made.train()
    found = finder.suggestion
    assert found is not None
    assert seen == pytest.approx([found * 0.25, *[found * 0.5] * 5])
