"""When training is ended early: on one engine, and by the driver's metrics."""

import math
from typing import Any

import pytest

from workers import Engine, Events, Worker
from workers.handlers import EarlyStopping
from workers.rank import Membership
from workers.state import State


def trained(scores: list[float], **given: Any) -> int:
    """The epoch at whose end training is over."""
    left = iter(scores)
    trainer = Engine(lambda engine, batch: engine.state.metrics.update(score=next(left)))
    EarlyStopping("score", **given).attach(trainer)
    return trainer.run([0], max_epochs=len(scores)).epoch


@pytest.mark.parametrize(
    ("scores", "given", "epoch"),
    [
        ([3, 2, 1, 0.5, 0.4], {}, 5),
        ([3, 2, 2, 2, 2, 2], {"patience": 3}, 5),
        ([3, 2, 2, 1, 2, 2, 2], {"patience": 3}, 7),  # a better one begins the count anew
        ([1, 2, 3, 3, 3], {"mode": "max", "patience": 2}, 5),
        ([1.0, 0.95, 0.91, 0.5, 0.5], {"min_delta": 0.1, "patience": 2}, 3),
        ([1.0, math.nan, math.nan, 0.5], {"patience": 2}, 3),
    ],
)
def test_training_ends_after_so_many_judgements_without_a_better_value(scores: Any, given: Any, epoch: int) -> None:
    assert trained(scores, **given) == epoch


def test_where_an_evaluator_measures_the_trainer_is_ended() -> None:
    trainer, evaluator = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: engine.state.metrics.update(score=1.0))
    EarlyStopping("score", patience=2).attach(evaluator, stops=trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
    assert trainer.run([0], max_epochs=9).epoch == 3


def test_its_count_is_saved_with_the_engine_and_a_run_that_was_stopped_stays_so() -> None:
    def engine(patience: int) -> Engine:
        made = Engine(lambda engine, batch: engine.state.metrics.update(score=1.0))
        EarlyStopping("score", patience=patience).attach(made)
        return made

    trainer = engine(3)
    trainer.run([0], max_epochs=2)
    saved = trainer.state_dict()
    again = engine(3)
    again.load_state_dict(saved)
    assert again.run([0], max_epochs=9).epoch == 4
    saved = again.state_dict()
    for patience, epoch in ((3, 4), (5, 6)):
        stopped = engine(patience)
        stopped.load_state_dict(saved)
        assert stopped.run([0], max_epochs=9).epoch == epoch


class Driver:
    """The orchestrator, as far as the handler asks it."""

    def __init__(self) -> None:
        self.state = State()
        self.evaluated: dict[str, int] = {}
        self.reasons: list[str] = []

    def terminate(self, reason: str) -> None:
        self.reasons.append(reason)


def test_only_what_was_measured_at_this_iteration_is_judged() -> None:
    driver: Any = Driver()
    handler = EarlyStopping("validation/loss", patience=1)
    for iteration in range(1, 7):
        driver.state.iteration = iteration
        if iteration % 3 == 0:
            driver.state.metrics["validation/loss"] = 1.0
            driver.evaluated["validation/loss"] = iteration
        handler(driver)
        assert bool(driver.reasons) == (iteration == 6)
    assert driver.reasons == ["validation/loss has not got better for 1 evaluations; the best was 1.0"]


def test_a_metric_that_is_not_there_is_named_with_those_that_are() -> None:
    trainer = Engine(lambda engine, batch: engine.state.metrics.update(score=1.0))
    EarlyStopping("sore").attach(trainer)
    with pytest.raises(
        ValueError,
        match=r"EarlyStopping\(metric\): expected the name of a metric that is measured by now, received 'sore'; "
        r"there are 'score': name one of these, or evaluate first",
    ):
        trainer.run([0])


def test_one_rank_among_several_does_not_decide_for_itself() -> None:
    trainer = Engine(lambda engine, batch: engine.state.metrics.update(score=1.0))
    trainer.worker = Worker(membership=Membership(generation=0, rank=0, world_size=2))
    EarlyStopping("score").attach(trainer)
    with pytest.raises(ValueError, match=r"received the engine of one rank among 2, .* write orchestrator\.attach"):
        trainer.run([0])


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"metric": ["loss"]}, r"EarlyStopping\(metric\): expected a name, received \['loss'\] \(list\); write"),
        ({"patience": 0}, r"EarlyStopping\(patience\): expected a whole number"),
        ({"mode": "least"}, r"EarlyStopping\(mode\): expected 'min' or 'max', received 'least'"),
        ({"min_delta": -1.0}, r"EarlyStopping\(min_delta\): expected a number of at least 0, received -1.0"),
    ],
)
def test_arguments_that_cant_be_used_are_refused(given: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        EarlyStopping(**{"metric": "score", **given})
