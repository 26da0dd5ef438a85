"""NaN ends a run: on one engine, as pytorch-ignite's handler of the same name."""

import logging
import math
import pickle
from typing import Any

import ignite.engine
import ignite.handlers
import pytest
import torch
from torch import nn

from workers import Engine, Events, Worker
from workers.handlers import NOT_FINITE, TerminateOnNan

OUTPUTS = [1.0, math.nan, math.inf, -math.inf, 3, "text", torch.ones(3), torch.tensor([0.0, math.nan])]


def ended_at(handler: Any, outputs: list[Any]) -> int:
    trainer = Engine(lambda engine, batch: batch)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, handler)
    return trainer.run(outputs).iteration


@pytest.mark.parametrize(
    "output", [*OUTPUTS, {"loss": math.nan}, [1.0, (torch.tensor(math.inf), 2)], {"a": [{"b": 0.0}]}]
)
def test_it_ends_where_pytorch_ignite_does(output: Any, caplog: pytest.LogCaptureFixture) -> None:
    theirs = ignite.engine.Engine(lambda engine, batch: batch)
    theirs.add_event_handler(ignite.engine.Events.ITERATION_COMPLETED, ignite.handlers.TerminateOnNan())
    assert ended_at(TerminateOnNan(), [1.0, output, 1.0]) == theirs.run([1.0, output, 1.0]).iteration


def test_the_run_terminates_after_the_iteration_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    trainer, fired = Engine(lambda engine, batch: {"loss": batch}), []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
    for event in (NOT_FINITE, Events.TERMINATE, Events.COMPLETED):
        trainer.add_event_handler(event, fired.append, event)
    with caplog.at_level(logging.WARNING):
        state = trainer.run([1.0, torch.tensor(math.nan), 1.0], max_epochs=3)
    assert fired == [NOT_FINITE, Events.TERMINATE, Events.COMPLETED]
    assert (state.iteration, state.epoch) == (2, 1)
    assert caplog.messages == ["iteration 2: loss is nan: training ends"]


def test_only_what_output_gives_is_looked_at() -> None:
    assert ended_at(TerminateOnNan(lambda out: out[0]), [(1.0, math.nan), (math.nan, 1.0), (1.0, 1.0)]) == 2


def test_it_attaches_itself_to_an_engine_too() -> None:
    trainer = Engine(lambda engine, batch: batch)
    TerminateOnNan(every=2).attach(trainer)
    assert trainer.run([1.0, 1.0, math.nan, math.nan, 1.0]).iteration == 4


def test_it_looks_at_every_so_many_iterations() -> None:
    assert ended_at(TerminateOnNan(every=3), [1.0, math.nan, 1.0, 1.0, 1.0, math.nan, 1.0]) == 6


def test_parameters_and_gradients_of_prepared_models_are_looked_at_too(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker()
    model = worker.prepare(nn.Linear(2, 1))
    frozen = worker.prepare(nn.Linear(2, 1).requires_grad_(False))
    frozen.weight.fill_(-math.inf)  # on purpose: nobody trains it

    def step(engine: Engine, batch: float) -> float:
        model.zero_grad()
        (model(torch.ones(1, 2)) * batch).sum().backward()
        return 0.0

    trainer = Engine(step)
    trainer.worker = worker
    trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan(parameters=True))
    assert trainer.run([1.0, math.inf, 1.0]).iteration == 2
    assert caplog.messages == [
        "iteration 2: gradient of Linear.weight has 2 of 2 values that are nan or infinite, and 1 more: training ends"
    ]


def test_parameters_of_an_engine_without_a_worker_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected an engine with a worker, .* set engine\.worker = worker"):
        ended_at(TerminateOnNan(parameters=True), [1.0])


@pytest.mark.parametrize("every", [0, True, 1.5, "3"])
def test_an_interval_that_is_none_is_refused(every: Any) -> None:
    with pytest.raises(
        ValueError, match=r"TerminateOnNan\(every\): expected a whole number of iterations of at least 1"
    ):
        TerminateOnNan(every=every)


def test_it_travels() -> None:
    copy = pickle.loads(pickle.dumps(TerminateOnNan(every=2)))
    assert (copy.output, copy.every, copy.parameters) == (None, 2, False)
