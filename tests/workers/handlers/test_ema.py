"""Averages of weights: what they are, where they are used, where they are saved. Several ranks: `test_handlers`."""

from typing import Any

import pytest
import torch

from tests.workers.handlers.regression import regression
from workers import Events, Worker
from workers.handlers import EMA


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def test_the_averages_are_those_of_the_formula() -> None:
    made = regression()
    ema = EMA(made.model, decay=0.9)
    ema.attach(made.trainer)
    expected = flat(made.model.parameters())

    @made.trainer.on(Events.ITERATION_COMPLETED)
    def follow() -> None:
        nonlocal expected
        expected = 0.9 * expected + 0.1 * flat(made.model.parameters())

    made.train()
    assert ema.weights is not None
    torch.testing.assert_close(flat(ema.weights.averages), expected)
    assert not torch.equal(flat(ema.weights.averages), flat(made.model.parameters()))


def test_they_begin_with_the_weights_of_the_start_and_follow_every_so_many_iterations() -> None:
    made = regression()
    ema = EMA(made.model, decay=0.0, every=4)
    ema.attach(made.trainer)
    with torch.no_grad():
        next(made.model.parameters()).fill_(0.5)  # as by start_from, after it was attached
    seen: list[torch.Tensor] = []
    for event in (Events.STARTED, Events.ITERATION_COMPLETED(once=[4, 5])):
        made.trainer.add_event_handler(event, lambda: seen.append(flat(made.model.parameters())))
    made.trainer.add_event_handler(Events.STARTED, lambda: seen.append(flat(ema.weights.averages)))  # type: ignore[union-attr]
    made.trainer.run(made.data, max_iters=5)
    assert ema.weights is not None
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(flat(ema.weights.averages), seen[2])
    assert not torch.equal(seen[2], seen[3])


def test_evaluators_run_with_the_averages_and_training_without() -> None:
    made = regression(worker=Worker())
    EMA(decay=0.9).attach(made.trainer)
    made.train()
    weights: Any = made.program.state["ema"]  # type: ignore[union-attr]
    living, averages = flat(made.model.parameters()), flat(weights.averages)
    seen: list[torch.Tensor] = []
    made.evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: seen.append(flat(weights._living)))
    made.evaluator.run([next(iter(made.data))])
    assert torch.equal(seen[0], averages)
    assert torch.equal(flat(made.model.parameters()), living)
    assert torch.equal(flat(weights.averages), averages)


def test_an_evaluation_that_fails_gives_the_weights_back() -> None:
    made = regression()
    ema = EMA(made.model, decay=0.9)
    ema.attach(made.trainer, made.evaluator)
    living = flat(made.train().model.parameters())
    with pytest.raises(TypeError):
        made.evaluator.run([None])
    assert torch.equal(flat(made.model.parameters()), living)
    with ema.averaged():
        assert not torch.equal(flat(made.model.parameters()), living)
    assert torch.equal(flat(made.model.parameters()), living)


def test_the_averages_are_an_entry_of_the_programs_state() -> None:
    made = regression(worker=Worker())
    EMA(decay=0.9, entry="slow").attach(made.trainer)
    made.train()
    state: Any = made.program.state  # type: ignore[union-attr]
    assert list(state) == ["model", "optimizer", "slow"]
    saved = {name: tensor.clone() for name, tensor in state["slow"].state_dict().items()}
    assert saved.keys() == dict(made.model.named_parameters()).keys()
    made.trainer.run(made.data, max_epochs=2)
    state["slow"].load_state_dict(saved)
    assert torch.equal(flat(state["slow"].averages), flat(saved.values()))


def test_a_model_or_a_name_that_cant_be_used_is_refused() -> None:
    made = regression(worker=Worker())
    with pytest.raises(ValueError, match=r"EMA\(model\): expected a model, or the name of one .* there are 'model'"):
        EMA("net").attach(made.trainer)
    with pytest.raises(ValueError, match=r"EMA\(entry\): expected a name that is free .* received 'optimizer'"):
        EMA(entry="optimizer").attach(made.trainer)
    with pytest.raises(ValueError, match=r"EMA\(decay\): expected a number of at least 0 and below 1, received 1.0"):
        EMA(decay=1.0)
    with pytest.raises(RuntimeError, match="attach it first"), EMA(made.model).averaged():
        pass


def test_a_second_average_of_a_model_does_not_stand_in_at_the_same_evaluator() -> None:
    made = regression(worker=Worker())
    EMA(decay=0.9).attach(made.trainer)
    with pytest.raises(ValueError, match=r"EMA\(evaluators\): expected one average of a model .* \('fast'\) for the"):
        EMA(decay=0.5, entry="fast").attach(made.trainer)
    fast = EMA(decay=0.5, entry="fast", evaluators=())
    fast.attach(made.trainer)
    living = flat(made.train().model.parameters())
    with fast.averaged():
        made.evaluator.run([next(iter(made.data))])
    made.evaluator.run([next(iter(made.data))])
    assert torch.equal(flat(made.model.parameters()), living)


def test_two_models_may_each_have_an_average_at_one_evaluator() -> None:
    made, other = regression(), regression()
    seen: list[list[bool]] = []
    both = [EMA(of.model, decay=0.9) for of in (made, other)]
    for of, ema in zip((made, other), both, strict=True):
        ema.attach(of.trainer, made.evaluator)
    living = [flat(of.train().model.parameters()) for of in (made, other)]
    weights: Any = [ema.weights for ema in both]
    made.evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append([one.swapped for one in weights]))
    made.evaluator.run([next(iter(made.data))])
    assert seen == [[True, True]]
    assert [torch.equal(flat(of.model.parameters()), was) for of, was in zip((made, other), living, strict=True)] == [
        True,
        True,
    ]


def test_engines_that_are_named_must_be_there_and_one_may_be_a_word() -> None:
    made = regression(worker=Worker())
    for wrong in ("validator", ("evaluator", "validator")):
        with pytest.raises(ValueError, match=r"received 'validator'; there are 'trainer', 'evaluator'"):
            EMA(evaluators=wrong).attach(made.trainer)
    with pytest.raises(ValueError, match=r"received 'evaluator'; there are none; give an engine alone to attach"):
        EMA(made.model, evaluators="evaluator").attach(regression().trainer)
    EMA(decay=0.9, evaluators="evaluator").attach(made.trainer)
    made.train()
    seen: list[bool] = []
    weights: Any = made.program.state["ema"]  # type: ignore[union-attr]
    made.evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(weights.swapped))
    made.evaluator.run([next(iter(made.data))])
    assert seen == [True]
