"""What is not worth keeping: how it is told, and that none of it is saved. Several ranks: `journeys/test_guards.py`."""

import math
import os
import pickle
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from orchestrator import Checkpoint, DivergenceError, NotFiniteError, Orchestrator, TerminateOnNan
from orchestrator.errors import exit_code_of
from orchestrator.guard import divergence, not_finite, unfit
from orchestrator.verdict import Facts
from tests.orchestrator.linear import journal, make
from workers import Engine, Events, Worker
from workers.handlers.check_divergence import CheckDivergence
from workers.handlers.terminate_on_nan import NOT_FINITE
from workers.rank import Place

PLACES = {w: Place(node=f"node-{w}", host=f"host-{w}", address="127.0.0.1", pid=100 + w) for w in range(3)}
FACTS = Facts(places=PLACES, ranks={0: 0, 2: 1, 1: 2})
MODEL, ODD = [("model.weight", 1), ("model.bias", 2)], [("model.weight", 1), ("model.bias", 3)]


def answering(*answers: Sequence[Any]) -> Callable[..., Any]:
    """As `orchestrator.call`, with these answers one after the other."""
    left = list(answers)
    return lambda function, *args: left.pop(0)


# ---------------------------------------------------------------- in words
def test_ranks_that_found_the_same_are_told_together() -> None:
    error = not_finite(answering(["loss is nan", "", "loss is nan", "loss is inf"]), 17)
    assert str(error).startswith(
        "iteration 17: expected finite numbers, received on ranks 0, 2: loss is nan; on rank 3: loss is inf; "
    )
    assert (error.ranks, exit_code_of(error)) == ((0, 2, 3), 1)


def test_the_odd_rank_is_told_with_its_place_and_what_differs() -> None:
    error = divergence(answering([(MODEL, 400), (ODD, 400), (MODEL, 400)]), 500, FACTS)
    assert str(error) == (
        "iteration 500: expected the same model on all ranks, bit by bit, received another one on rank 1 (pid 102 on "
        "host-2): model.bias differs, one of 2 tensors; they were equal after iteration 400; test the memory and "
        "device there, and look for code that changes a model on some ranks only"
    )
    assert exit_code_of(error) == 3
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_what_optimizers_remember_is_looked_at_if_models_are_equal() -> None:
    moment = [*MODEL, ("optimizer.state[0].exp_avg", 7)]
    odd = [("model.weight", 1), ("model.bias", 2), ("optimizer.state[0].exp_avg", 8)]
    equal = [(MODEL, None)] * 2
    error = divergence(answering(equal, [(moment, None), (odd, None)]), 5, FACTS)
    assert "optimizer.state[0].exp_avg differs, one of 3 tensors; test the memory" in str(error)
    assert divergence(answering(equal, [(moment, None)] * 2), 5, FACTS) is None


def test_only_what_is_guarded_against_is_asked_of_the_ranks() -> None:
    assert unfit([Checkpoint(), object()], answering(), 3, FACTS) is None
    assert unfit([TerminateOnNan(), CheckDivergence()], answering(["", ""], [7, 7]), 3, FACTS) is None
    spoilt = unfit([TerminateOnNan()], answering(["", "parameter w is nan"]), 3, FACTS)
    assert isinstance(spoilt, NotFiniteError)
    apart = unfit([CheckDivergence()], answering([7, 8], [(MODEL, None), (ODD, None)]), 3, FACTS)
    assert isinstance(apart, DivergenceError)


# ---------------------------------------------------------------- whole runs in this process
def spoil(worker: Worker) -> None:
    """Make the model worthless, as nobody should."""
    assert worker.program is not None
    with torch.no_grad():
        next(worker.program.state["model"].parameters()).fill_(math.nan)  # type: ignore[attr-defined]


def texts(storage: Path, event: str) -> list[str]:
    return [line["text"] for line in journal(storage) if line["event"] == event]


def test_what_a_handler_spoils_is_found_as_it_saves_and_ends_training_there(tmp_path: Path) -> None:
    orchestrator, saved = make(tmp_path), []
    orchestrator.attach(TerminateOnNan())

    @orchestrator.on(Events.EPOCH_COMPLETED)
    def save(run: Orchestrator) -> None:
        if run.state.epoch == 2:
            run.call(spoil)
        saved.append(run.checkpoint(wait=True))

    result = orchestrator.run(max_epochs=5)
    assert [bool(url) for url in saved] == [True, False]
    assert (result.status, result.state.epoch, result.checkpoint) == ("terminated", 2, saved[0])
    assert "received on rank 0: parameter model.weight has 3 of 3 values that are nan" in str(result.reason)
    assert texts(tmp_path, "CHECKPOINT_LEFT_OUT") == texts(tmp_path, "NOT_FINITE") == [result.reason]


def test_what_is_found_only_at_the_very_end_makes_the_run_a_failed_one(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.attach(TerminateOnNan())
    orchestrator.attach(Checkpoint(every=2))
    orchestrator.on(Events.COMPLETED)(lambda run: run.call(spoil))
    result = orchestrator.run(max_epochs=3)
    assert (result.status, result.state.epoch) == ("terminated", 3)
    assert isinstance(result.failure, NotFiniteError)
    assert str(result.checkpoint).endswith("step-00000006")
    assert journal(tmp_path)[-1]["reason"] == result.reason == str(result.failure)


def test_a_handler_of_the_driver_hears_of_it_once(tmp_path: Path) -> None:
    orchestrator, heard = make(tmp_path), []
    orchestrator.attach(TerminateOnNan(lambda output: math.nan))
    orchestrator.on(NOT_FINITE)(lambda run: heard.append(run.state.iteration))
    assert orchestrator.run(max_epochs=2).state.iteration == 1
    assert heard == [1]


def test_it_is_told_although_the_user_pressed_ctrl_c_meanwhile(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.attach(TerminateOnNan(lambda output: math.nan, every=2))
    orchestrator.attach(Checkpoint())
    orchestrator.on(NOT_FINITE)(lambda run: os.kill(os.getpid(), signal.SIGINT))
    result = orchestrator.run(max_epochs=2)
    assert (result.status, result.state.iteration, result.checkpoint) == ("terminated", 2, None)
    assert isinstance(result.failure, NotFiniteError)


def test_an_evaluation_with_nan_is_its_own_affair(tmp_path: Path) -> None:
    def ended(engine: Engine) -> None:
        TerminateOnNan(lambda output: math.nan)(engine)

    orchestrator = make(tmp_path)
    orchestrator.on(Events.ITERATION_COMPLETED, rank="all", engine="evaluator")(ended)
    orchestrator.on(Events.EPOCH_COMPLETED)(lambda run: run.evaluate())
    assert orchestrator.run(max_epochs=2).status == "completed"
