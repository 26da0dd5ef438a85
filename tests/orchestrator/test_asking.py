"""Orders that are answered: who is asked, what is made of the answers, and when there is nobody to ask."""

import contextlib
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

from orchestrator.errors import HandlerError, SpecError, TrainingError
from orchestrator.run import Run
from tests.orchestrator.conftest import MakeRun
from tests.orchestrator.fake_group import FakeGroup, gate
from workers.events import Events
from workers.messages import Answer
from workers.orders import Call, CutAt, Evaluate, Order, ProposeCut, Release
from workers.parcels import Failure

Ask = Callable[[Run], Any]


@pytest.fixture
def at_gate(make_run: MakeRun) -> Callable[[FakeGroup, Ask], Any]:
    """Ask something inside a handler of the first epoch's end; what it gave."""

    def ask(group: FakeGroup, question: Ask) -> Any:
        given: list[Any] = []
        run = make_run(group, lambda: given.append(question(run)), Events.EPOCH_COMPLETED)
        run.execute(None)
        return given[0]

    return ask


def group_at_gate(size: int = 3) -> FakeGroup:
    return FakeGroup(size, [gate()])


def test_all_ranks_evaluate_and_their_metrics_are_reduced(at_gate: Any) -> None:
    group = group_at_gate()
    assert at_gate(group, lambda run: run.asking.evaluate("evaluator")) == {"accuracy": 1.0}
    assert [len(group.ordered(Evaluate, worker)) for worker in range(3)] == [1, 1, 1]


def test_answers_come_in_the_order_of_ranks_whoever_is_first(at_gate: Any) -> None:
    group = group_at_gate()
    late: list[Order] = []

    def call(worker: int, order: Order) -> None:
        late.append(order)
        if worker == 2:
            for other in (2, 0, 1):
                group.answer(other, order, cloudpickle.dumps(other))

    group.scripts[Call] = call
    answers = at_gate(group, lambda run: run.asking.call(print, (), {}, None))
    assert list(answers.items()) == [(0, 0), (1, 1), (2, 2)]


def test_only_the_ranks_that_are_asked_get_the_order(at_gate: Any) -> None:
    group = group_at_gate()
    answers = at_gate(group, lambda run: run.asking.call(max, (1,), {"default": 2}, [2, 0, 2]))
    assert list(answers) == [0, 2]
    assert [len(group.ordered(Call, worker)) for worker in range(3)] == [1, 0, 1]
    assert cloudpickle.loads(group.ordered(Call)[0].pickled) == (max, (1,), {"default": 2})


def test_every_order_has_a_number_of_its_own(at_gate: Any) -> None:
    group = group_at_gate(1)
    at_gate(group, lambda run: [run.asking.call(print, (), {}, None) for _ in range(3)])
    assert [order.order for order in group.ordered(Call)] == [1, 2, 3]


def test_a_failure_is_raised_once_with_its_ranks(at_gate: Any) -> None:
    group = group_at_gate(2)
    failure = Failure(type_name="ValueError", text="no", traceback="the traceback")
    group.scripts[Call] = lambda worker, order: group.send(Answer, worker, order=order.order, failure=failure)
    with pytest.raises(TrainingError, match=r"^orchestrator.call: ranks 0-1 raised ValueError: no$") as caught:
        at_gate(group, lambda run: run.asking.call(print, (), {}, None))
    assert caught.value.traceback == "the traceback"


def test_different_failures_are_each_told_with_their_own_ranks(at_gate: Any) -> None:
    group = group_at_gate(3)

    def fail(worker: int, order: Call) -> None:
        failure = Failure(type_name="ValueError", text="disk" if worker == 1 else "no", traceback=f"of {worker}")
        group.send(Answer, worker, order=order.order, failure=failure)

    group.scripts[Call] = fail
    with pytest.raises(TrainingError) as caught:
        at_gate(group, lambda run: run.asking.call(print, (), {}, None))
    assert str(caught.value) == ("orchestrator.call: ranks 0, 2 raised ValueError: no; rank 1 raised ValueError: disk")
    assert (caught.value.ranks, caught.value.traceback) == ((0, 2), "of 0")


def test_an_engine_that_does_not_exist_is_named(at_gate: Any) -> None:
    with pytest.raises(SpecError) as caught:
        at_gate(group_at_gate(), lambda run: run.asking.evaluate("tester"))
    assert str(caught.value) == (
        "orchestrator.evaluate: expected an engine of the program ('trainer', 'evaluator'), received 'tester'; "
        "name one of them"
    )


def test_nobody_is_asked_while_no_gate_is_open(make_run: MakeRun) -> None:
    group = group_at_gate()
    with pytest.raises(SpecError) as caught:
        make_run(group).asking.call(print, (), {}, None)
    assert str(caught.value) == (
        "orchestrator: evaluate, checkpoint, call: expected ranks that wait at a gate, received ranks that train on; "
        "give the order inside a blocking "
        "driver handler, such as one of EPOCH_COMPLETED, or register yours with blocking=True"
    )
    assert group.orders == []


def test_a_fault_while_a_handler_waits_ends_the_run_though_the_handler_swallows_it(make_run: MakeRun) -> None:
    group = group_at_gate()
    group.scripts[Call] = lambda worker, order: group.fail(1) if worker == 1 else None
    swallowed: list[BaseException] = []

    def careless() -> None:
        try:
            run.asking.call(print, (), {}, None)
        except BaseException as error:
            swallowed.append(error)

    run = make_run(group, careless)
    with pytest.raises(TrainingError, match="rank 1 raised ValueError: boom") as caught:
        run.execute(None)
    assert swallowed == [caught.value]


def test_an_evaluation_opens_gates_of_its_own_within_the_first(make_run: MakeRun) -> None:
    group = FakeGroup(2, [gate()])
    inner = gate("COMPLETED", engine="evaluator", visit=1)
    answer = group.scripts[Evaluate]
    asked: dict[int, Order] = {}

    def evaluate(worker: int, order: Order) -> None:
        asked[worker] = order
        group.arrive(worker, inner)

    def release(worker: int, order: Release) -> None:
        if order.gate == inner:
            answer(worker, asked[worker])
        else:
            group.go_on(worker)

    group.scripts |= {Evaluate: evaluate, Release: release}
    seen: list[tuple[str, ...]] = []
    run = make_run(group, lambda: run.asking.evaluate("evaluator"))
    run._buses["evaluator"].listen(Events.COMPLETED, lambda: seen.append(tuple(map(str, run.gates.open))))
    run.execute(None)
    assert seen == [("trainer EPOCH_COMPLETED #1", "evaluator COMPLETED #1")]
    assert [order.gate for order in group.ordered(Release)] == [inner, gate()]


def test_an_error_at_an_inner_gate_ends_the_run_though_the_outer_handler_swallows_it(make_run: MakeRun) -> None:
    group = FakeGroup(1, [gate()])
    group.scripts[Evaluate] = lambda worker, order: group.arrive(worker, gate("COMPLETED", engine="evaluator"))

    def broken() -> None:
        raise ValueError("no axis")

    def careless() -> None:
        with contextlib.suppress(Exception):
            run.asking.evaluate("evaluator")
        raise KeyError("what came of it")

    run = make_run(group, careless)
    run._buses["evaluator"].listen(Events.COMPLETED, broken)
    with pytest.raises(HandlerError, match=r"broken .* at COMPLETED #1 raised ValueError: no axis") as caught:
        run.execute(None)
    assert "what came of it" in str(caught.value.__cause__)
    assert group.ordered(Release) == []


def test_a_cut_is_agreed_on_once(make_run: MakeRun) -> None:
    group = FakeGroup(3)
    run = make_run(group)
    run.ranks.start()
    run.ranks.place()
    run.asking.cut()
    run.asking.cut()
    for _ in range(3):
        run.loop.pump()
    assert [order.iteration for worker in range(3) for order in group.ordered(CutAt, worker)] == [12, 12, 12]
    assert len(group.ordered(ProposeCut)) == 1
