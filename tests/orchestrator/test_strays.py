"""Ranks that part while they carry out an order: nobody waits for those that will never come."""

from collections.abc import Callable

import pytest

from orchestrator.errors import GateMismatchError
from orchestrator.run import Run
from tests.orchestrator.conftest import MakeRun
from tests.orchestrator.fake_group import FakeGroup, gate
from workers.orders import Call, Evaluate, Order

MEND = "; give every rank the same number of iterations and fire events outside rank-dependent branches"
INNER = gate("ITERATION_COMPLETED", engine="evaluator", visit=1)


def ended(make_run: MakeRun, group: FakeGroup, handler: Callable[[Run], object]) -> str:
    run = make_run(group, lambda: handler(run))
    with pytest.raises(GateMismatchError) as caught:
        run.execute(None)
    return str(caught.value).removesuffix(MEND).partition("received ")[2]


@pytest.mark.parametrize("first", [0, 1])
def test_a_rank_that_has_evaluated_will_not_come_to_a_gate_of_that_evaluation(make_run: MakeRun, first: int) -> None:
    group = FakeGroup(2, [gate()])

    def evaluate(worker: int, order: Order) -> None:
        if worker == 1:
            steps = [lambda: group.answer(1, order, {}), lambda: group.arrive(0, INNER)]
            for step in steps[first:] + steps[:first]:
                step()

    group.scripts[Evaluate] = evaluate
    assert ended(make_run, group, lambda run: run.asking.evaluate("evaluator")) == (
        "rank 0 at evaluator ITERATION_COMPLETED #1, rank 1 at the end of evaluate('evaluator')"
    )


def test_a_rank_that_was_called_and_has_returned_will_not_come_to_a_gate_of_that_call(make_run: MakeRun) -> None:
    group = FakeGroup(3, [gate()])
    group.scripts[Call] = lambda worker, order: (
        group.arrive(2, gate("X")) if worker == 2 else group.answer(worker, order, b"")
    )
    assert ended(make_run, group, lambda run: run.asking.call(print, (), {}, None)) == (
        "rank 2 at trainer X #1, ranks 0-1 at the end of call"
    )


def test_a_rank_that_was_not_called_will_not_come_to_a_gate_of_that_call(make_run: MakeRun) -> None:
    group = FakeGroup(2, [gate()])
    group.scripts[Call] = lambda worker, order: group.arrive(worker, gate("X"))
    assert ended(make_run, group, lambda run: run.asking.call(print, (), {}, [0])) == (
        "rank 0 at trainer X #1, rank 1 at trainer EPOCH_COMPLETED #1"
    )


def test_a_rank_whose_training_ends_will_not_answer(make_run: MakeRun) -> None:
    group = FakeGroup(2, [gate()])
    group.scripts[Call] = lambda worker, order: group.finish(worker) if worker == 1 else None
    assert ended(make_run, group, lambda run: run.asking.call(print, (), {}, None)) == (
        "rank 0 at call, rank 1 at the end of training"
    )


def test_gates_that_all_ranks_reach_inside_an_order_are_no_reason_to_end(make_run: MakeRun) -> None:
    group = FakeGroup(2, [gate(), INNER])
    orders: list[Order] = []
    group.scripts[Evaluate] = lambda worker, order: (orders.append(order), group.arrive(worker, INNER))[0]
    release = group.go_on

    def go_on(worker: int) -> None:
        if orders:
            group.answer(worker, orders.pop(), {})
        else:
            release(worker)

    group.go_on = go_on  # type: ignore[method-assign]
    run = make_run(group, lambda: run.asking.evaluate("evaluator"))
    group.gates = (gate(),)
    run.execute(None)
