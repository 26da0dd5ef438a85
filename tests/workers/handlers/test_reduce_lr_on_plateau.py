"""Rates are lowered when torch's scheduler of the same name would, on one engine; by the driver in `test_handlers`."""

from typing import Any

import pytest
import torch

from tests.workers.handlers.regression import regression
from workers import Engine, Events
from workers.handlers import ReduceLROnPlateau

SCORES = [1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.2, 0.2, 0.2, 0.2, 0.2]


def rates(given: dict[str, Any], scores: list[float]) -> list[float]:
    made, left, seen = regression(lr=1.0), iter(scores), []
    trainer = Engine(lambda engine, batch: engine.state.metrics.update(score=next(left)))
    ReduceLROnPlateau("score", optimizer=made.optimizer, **given).attach(trainer)
    trainer.add_phase_handler("gate", Events.EPOCH_COMPLETED, lambda: seen.append(made.optimizer.param_groups[0]["lr"]))
    trainer.run([0], max_epochs=len(scores))
    return seen


@pytest.mark.parametrize("given", [{}, {"cooldown": 2}, {"factor": 0.5, "min_lr": 0.2}, {"mode": "max"}])
def test_it_lowers_the_rates_where_torchs_scheduler_does(given: Any) -> None:
    made, expected = regression(lr=1.0), []
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(made.optimizer, patience=1, threshold=0.0, **given)
    for score in SCORES:
        theirs.step(score)
        expected.append(made.optimizer.param_groups[0]["lr"])
    assert rates({"patience": 2, **given}, SCORES) == pytest.approx(expected)
    assert len(set(expected)) > 1


def test_its_count_is_saved_with_the_engine() -> None:
    def started() -> Any:
        made = regression(lr=1.0)
        trainer = Engine(lambda engine, batch: engine.state.metrics.update(score=1.0))
        ReduceLROnPlateau("score", patience=3, cooldown=1, optimizer=made.optimizer).attach(trainer)
        return made.optimizer, trainer

    optimizer, trainer = started()
    trainer.run([0], max_epochs=3)
    saved = trainer.state_dict()
    assert optimizer.param_groups[0]["lr"] == 1.0
    optimizer, trainer = started()
    trainer.load_state_dict(saved)
    trainer.run([0], max_epochs=4)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
