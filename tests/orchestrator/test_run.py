"""One training, with scripted ranks: the order of its steps, and every way in which it ends."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.errors import (
    FencedError,
    GateMismatchError,
    HandlerError,
    RunInterrupted,
    SpecError,
    StartError,
    SystemFailure,
    TrainingError,
    WorkerLostError,
)
from orchestrator.exchange import Incoming, LeaseLost
from orchestrator.lifecycle import Phase
from orchestrator.run import Run
from tests.orchestrator.conftest import MakeRun, lines_of
from tests.orchestrator.fake_group import FakeGroup, gate
from workers.events import Events
from workers.messages import Built
from workers.orders import Build, CutAt, Go, Join, Order, ProposeCut, Release
from workers.parcels import LoadPoint


def trainer_of(run: Run) -> Any:
    return run._buses["trainer"]


def events(run: Run) -> list[str]:
    return [line["event"] for line in lines_of(run)]


def kinds(group: FakeGroup, worker: int) -> list[type[Order]]:
    return [type(order) for to, order in group.orders if to == worker]


# ---------------------------------------------------------------- the start
def test_ranks_build_join_and_train_in_this_order(make_run: MakeRun) -> None:
    group = FakeGroup(2)
    run = make_run(group)
    run.execute(None)
    assert kinds(group, 0) == kinds(group, 1) == [Build, Join, Go]
    assert [type(order) for _, order in group.orders] == [Build, Build, Join, Join, Go, Go]
    assert run.life.story == [
        Phase.NEW, Phase.PLACING, Phase.BUILDING, Phase.JOINING, Phase.RUNNING, Phase.FINISHING,
    ]  # fmt: skip


def test_every_rank_that_joined_is_in_the_journal(make_run: MakeRun) -> None:
    run = make_run(FakeGroup(2))
    run.execute(None)
    lines = [line for line in lines_of(run) if line["event"] == "WORKER_JOINED"]
    assert [(line["rank"], line["pid"], line["node"]) for line in lines] == [(0, 100, "node-a"), (1, 101, "node-a")]


def test_what_every_worker_built_is_in_the_journal(make_run: MakeRun) -> None:
    run = make_run(FakeGroup(3), spares=1)
    run.execute(None)
    lines = [line for line in lines_of(run) if line["event"] == "WORKER_BUILT"]
    assert [(line["rank"], line["pid"]) for line in lines] == [(0, 100), (1, 101), (None, 102)]  # a spare holds none
    assert {(line["seconds"], len(line["state_bytes"])) for line in lines} == {(0.0, 0)}


def test_spares_build_and_wait(make_run: MakeRun) -> None:
    group = FakeGroup(3)
    make_run(group, spares=1).execute(None)
    assert [kinds(group, worker) for worker in range(3)] == [[Build, Join, Go], [Build, Join, Go], [Build]]
    assert {order.membership.world_size for worker in range(3) for order in group.ordered(Build, worker)} == {2}


def test_ranks_that_join_late_are_named(make_run: MakeRun) -> None:
    group = FakeGroup(3)
    on_time = group.scripts[Join]
    group.scripts[Join] = lambda worker, given: on_time(worker, given) if worker == 1 else None
    with pytest.raises(StartError) as caught:
        make_run(group).execute(None)
    assert str(caught.value) == (
        "cluster.start_timeout: expected all ranks to join within 0.05 s, received nothing from ranks 0, 2; see that "
        "their nodes are up and have room, or raise cluster.start_timeout"
    )


@pytest.mark.parametrize(("order", "step"), [(Build, "build"), (Join, "join")])
def test_a_long_build_or_load_is_waited_for_and_told(
    make_run: MakeRun, capfd: pytest.CaptureFixture[str], order: type[Order], step: str
) -> None:
    group = FakeGroup(2)
    on_time, late, told = group.scripts[order], [], []
    group.scripts[order] = lambda worker, given: late.append(given) if worker == 1 else on_time(worker, given)

    def take(timeout: float) -> Incoming | None:
        told.append(capfd.readouterr().err)
        if late and f"rankfire: still waiting for rank 1 to {step}\n" in "".join(told):
            on_time(1, late.pop())
        return FakeGroup.take(group, timeout)

    group.take = take  # type: ignore[method-assign]
    make_run(group).execute(LoadPoint(url="anywhere", world_size=2))
    assert not late


@pytest.mark.parametrize(("short", "told"), [(None, ""), ("1 CPU", ", with 1 CPU free")])
def test_workers_that_do_not_start_are_named_with_what_is_free(make_run: MakeRun, short: str | None, told: str) -> None:
    group = FakeGroup(2)
    group.start = lambda: group.hello(1)  # type: ignore[method-assign]
    group.short = short
    with pytest.raises(StartError) as caught:
        make_run(group).execute(None)
    assert str(caught.value) == (
        f"cluster.start_timeout: expected all ranks to start within 0.05 s, received nothing from rank 0{told}; see "
        "that their nodes are up and have room, or raise cluster.start_timeout"
    )


def test_a_build_that_raises_ends_the_start_at_once(make_run: MakeRun) -> None:
    group = FakeGroup(2)
    group.scripts[Build] = lambda worker, order: group.fail(worker, text="no data")
    with pytest.raises(TrainingError) as caught:
        make_run(group).execute(None)
    assert str(caught.value) == "ranks 0-1 raised ValueError: no data"


def test_a_handler_of_an_engine_that_the_program_lacks_is_refused_before_training(make_run: MakeRun) -> None:
    group = FakeGroup(2)
    run = make_run(group)
    run._buses = {**run._buses, "evaluater": run._buses["evaluator"]}
    with pytest.raises(SpecError) as caught:
        run.execute(None)
    assert str(caught.value) == (
        "orchestrator.on(engine='evaluater'): expected an engine of the program ('trainer', 'evaluator'), received "
        "'evaluater'; did you mean 'evaluator'?"
    )
    assert Go not in kinds(group, 0)


def test_handlers_can_not_be_added_once_the_ranks_are_told(make_run: MakeRun) -> None:
    run = make_run(FakeGroup(1, [gate()]))
    late: list[str] = []

    def handler() -> None:
        with pytest.raises(SpecError) as caught:
            trainer_of(run).listen(Events.COMPLETED, print)
        late.append(str(caught.value))

    trainer_of(run).listen(Events.EPOCH_COMPLETED, handler)
    run.execute(None)
    assert "before the run starts" in late[0]


# ---------------------------------------------------------------- gates
def test_a_full_gate_fires_its_handlers_once_and_releases_all_with_reduced_metrics(make_run: MakeRun) -> None:
    group = FakeGroup(2, [gate(count=1), gate(count=2)])
    seen: list[tuple[float, Phase]] = []
    run = make_run(group)
    trainer_of(run).listen(
        Events.EPOCH_COMPLETED, lambda: seen.append((trainer_of(run).state.metrics["loss"], run.life.phase))
    )
    run.execute(None)
    expected = (1.0 * 1 + 3.0 * 2) / 3
    assert seen == [(expected, Phase.GATE)] * 2
    for worker in range(2):
        releases = group.ordered(Release, worker)
        assert [(order.gate.count, order.metrics, order.then) for order in releases] == [
            (1, {"loss": expected}, "go on"),
            (2, {"loss": expected}, "go on"),
        ]
    assert trainer_of(run).state.output == {"loss": expected}


def test_nobody_is_released_before_all_have_arrived(make_run: MakeRun) -> None:
    group = FakeGroup(2, [gate()])
    released: list[int] = []
    arrive = group.go_on

    def late(worker: int) -> None:
        if worker == 1 and not group.passed[1]:
            group.inbox.append(lambda: released.append(len(group.ordered(Release, 0))))
        arrive(worker)

    group.go_on = late  # type: ignore[method-assign]
    group.scripts[Go] = lambda worker, order: group.go_on(worker)
    make_run(group).execute(None)
    assert released == [0]
    assert len(group.ordered(Release, 0)) == 1


def test_an_epoch_is_in_the_journal_once_with_its_place_and_metrics(make_run: MakeRun) -> None:
    run = make_run(FakeGroup(2, [gate()]))
    run.execute(None)
    (line,) = [line for line in lines_of(run) if line["event"] == "EPOCH_COMPLETED"]
    assert (line["epoch"], line["iteration"], line["metrics"]) == (1, 10, {"loss": 7 / 3})


def test_a_watched_event_fires_once_when_all_have_reported_and_nobody_waits(make_run: MakeRun) -> None:
    group = FakeGroup(2)
    seen: list[int] = []

    def observe(worker: int, _: Order) -> None:
        for count in (1, 2):
            group.observe(worker, gate("ITERATION_COMPLETED", count), iteration=count)
        group.finish(worker)

    group.scripts[Go] = observe
    run = make_run(group)
    trainer_of(run).listen(Events.ITERATION_COMPLETED, lambda: seen.append(trainer_of(run).state.iteration))
    run.execute(None)
    assert seen == [1, 2]
    assert group.ordered(Release) == []


def test_ranks_at_different_gates_end_the_run_with_who_is_where(make_run: MakeRun) -> None:
    group = FakeGroup(3)
    group.scripts[Go] = lambda worker, _: group.arrive(worker, gate() if worker else gate("COMPLETED"))
    run = make_run(group)
    with pytest.raises(GateMismatchError) as caught:
        run.execute(None)
    assert str(caught.value) == (
        "gate: expected all ranks at the same event, received rank 0 at trainer COMPLETED #1, rank 1 at trainer "
        "EPOCH_COMPLETED #1; give every rank the same number of iterations and fire events outside rank-dependent "
        "branches"
    )


@pytest.mark.parametrize("first", [0, 1])
def test_a_rank_that_finishes_while_others_wait_is_an_error(make_run: MakeRun, first: int) -> None:
    group = FakeGroup(2)

    def go(worker: int, _: Order) -> None:
        if worker == 1:
            turns = [lambda: group.arrive(0, gate()), lambda: group.finish(1)]
            group.inbox.extend(turns if first == 0 else turns[::-1])

    group.scripts[Go] = go
    with pytest.raises(GateMismatchError, match=r"rank 0 at trainer EPOCH_COMPLETED #1, rank 1 at the end of training"):
        make_run(group).execute(None)


# ---------------------------------------------------------------- how it ends
def test_a_fault_ends_the_run_with_the_users_error(make_run: MakeRun) -> None:
    group = FakeGroup(2)
    group.scripts[Go] = lambda worker, _: group.fail(worker) if worker else None
    with pytest.raises(TrainingError, match=r"^rank 1 raised ValueError: boom$"):
        make_run(group).execute(None)


def test_a_users_fault_that_comes_after_a_lost_peer_is_the_cause(make_run: MakeRun) -> None:
    group = FakeGroup(3)

    def go(worker: int, _: Order) -> None:
        if worker == 2:
            group.fail(0, "communication", "gloo: closed")
            group.lose(1)
            group.fail(2, text="the cause")

    group.scripts[Go] = go
    with pytest.raises(TrainingError, match=r"^rank 2 raised ValueError: the cause$"):
        make_run(group).execute(None)


def test_a_lost_rank_is_named_and_in_the_journal(make_run: MakeRun) -> None:
    group = FakeGroup(2)
    group.scripts[Go] = lambda worker, _: group.lose(1) if worker else None
    run = make_run(group)
    with pytest.raises(WorkerLostError) as caught:
        run.execute(None)
    assert str(caught.value) == "rank 1 (pid 101 on node node-a (host)) was lost: ActorDiedError: killed"
    lost = [line for line in lines_of(run) if line["event"] == "WORKER_LOST"]
    told = [(line["rank"], line["pid"], line["cause"], line["text"]) for line in lost]
    assert told == [(1, 101, "crash", "ActorDiedError: killed")]


def test_broken_collectives_alone_are_a_system_failure(make_run: MakeRun) -> None:
    group = FakeGroup(2)
    group.scripts[Go] = lambda worker, _: group.fail(worker, "communication", "gloo: closed")
    with pytest.raises(SystemFailure, match="ranks lost contact with each other: rank 0") as caught:
        make_run(group).execute(None)
    assert not isinstance(caught.value, WorkerLostError)


def test_the_drivers_handlers_of_exception_raised_are_told_once(make_run: MakeRun) -> None:
    group = FakeGroup(2)
    group.scripts[Go] = lambda worker, _: group.fail(worker)
    told: list[Exception] = []
    run = make_run(group, lambda run, error: told.append(error), Events.EXCEPTION_RAISED)
    with pytest.raises(TrainingError) as caught:
        run.execute(None)
    assert told == [caught.value]


def test_a_handler_of_exception_raised_that_raises_hides_nothing(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise KeyError("again")

    group = FakeGroup(1)
    group.scripts[Go] = lambda worker, _: group.fail(worker)
    with pytest.raises(TrainingError, match=r"^rank 0 raised ValueError: boom$"):
        make_run(group, broken, Events.EXCEPTION_RAISED).execute(None)
    assert caplog.messages == ["a handler of EXCEPTION_RAISED raised an exception itself"]


def test_a_driver_handler_that_raises_ends_the_run(make_run: MakeRun) -> None:
    def broken() -> None:
        raise ZeroDivisionError("by zero")

    with pytest.raises(HandlerError, match=r"broken \(.*\) at EPOCH_COMPLETED #1 raised ZeroDivisionError: by zero"):
        make_run(FakeGroup(2, [gate()]), broken).execute(None)


# ---------------------------------------------------------------- ending on purpose
def test_terminate_at_a_gate_goes_out_with_its_release(make_run: MakeRun) -> None:
    group = FakeGroup(2, [gate()])
    run = make_run(group)
    trainer_of(run).listen(Events.EPOCH_COMPLETED, lambda: run.terminate("good enough"))
    run.execute(None)
    assert [order.then for worker in range(2) for order in group.ordered(Release, worker)] == ["terminate"] * 2
    assert (run.stop_reason, run.interrupted) == ("good enough", False)
    assert group.ordered(ProposeCut) == []


def test_terminate_twice_keeps_the_first_reason(make_run: MakeRun) -> None:
    run = make_run(FakeGroup(2, [gate()]))
    trainer_of(run).listen(Events.EPOCH_COMPLETED, lambda: (run.terminate("first"), run.terminate("second"))[0])
    run.execute(None)
    assert run.stop_reason == "first"


def test_terminate_outside_a_gate_cuts_at_the_highest_iteration_in_progress(make_run: MakeRun) -> None:
    group = FakeGroup(2)
    group.scripts[Go] = lambda worker, _: group.observe(worker, gate("ITERATION_COMPLETED", 4))
    run = make_run(group)
    trainer_of(run).listen(Events.ITERATION_COMPLETED, lambda: (run.terminate("enough"), run.terminate("enough"))[0])
    run.execute(None)
    assert len(group.ordered(ProposeCut)) == 1
    assert [order.iteration for worker in range(2) for order in group.ordered(CutAt, worker)] == [11, 11]
    assert [order.then for order in group.ordered(Release)] == ["terminate"]


def test_terminate_at_a_gate_of_another_engine_cuts_the_trainer(make_run: MakeRun) -> None:
    group = FakeGroup(2, [gate("COMPLETED", engine="evaluator", visit=1)])
    run = make_run(group)
    run._buses["evaluator"].listen(Events.COMPLETED, lambda: run.terminate("enough"))
    done = group.finish
    group.finish = lambda worker: None if not group.ordered(CutAt, worker) else done(worker)  # type: ignore[method-assign]
    run.execute(None)
    assert [order.then for order in group.ordered(Release)] == ["go on", "terminate"]


def test_ctrl_c_cuts_and_interrupts(make_run: MakeRun) -> None:
    group = FakeGroup(2)
    group.scripts[Go] = lambda worker, _: group.interrupt() if worker else None
    run = make_run(group)
    waiting: list[bool] = []
    run.gates.at_cut = lambda: waiting.append(bool(run.gates.open))
    run.execute(None)
    assert run.interrupted
    assert [order.then for order in group.ordered(Release)] == ["interrupt"]
    assert waiting == [True]  # all ranks wait while the driver saves


@pytest.mark.parametrize(("step", "given"), [(Build, [Build]), (Join, [Build, Join])])
def test_ctrl_c_while_the_ranks_start_ends_the_run_there(
    make_run: MakeRun, step: type[Order], given: list[type[Order]]
) -> None:
    group = FakeGroup(2)
    group.scripts[step] = lambda worker, _: group.interrupt() if worker == 1 else None
    with pytest.raises(RunInterrupted):
        make_run(group).execute(None)
    assert kinds(group, 0) == given


def test_what_is_ended_while_the_ranks_start_is_cut_as_soon_as_it_trains(make_run: MakeRun) -> None:
    group = FakeGroup(2)
    group.scripts[Go] = lambda worker, _: None
    run = make_run(group)
    run.terminate("enough")
    run.execute(None)
    assert kinds(group, 0) == [Build, Join, Go, ProposeCut, CutAt, Release]


def test_what_waits_for_a_boundary_while_the_ranks_start_gets_one_as_soon_as_it_trains(make_run: MakeRun) -> None:
    group = FakeGroup(2, [gate()])
    run = make_run(group)
    run.built = run.cut
    run.execute(None)
    assert [type(order) for worker, order in group.orders if worker == 0].count(ProposeCut) == 1


def pressed_at_a_gate(make_run: MakeRun, *before: str) -> tuple[FakeGroup, Run]:
    """Ctrl-C while handlers of an epoch's end run, perhaps after a `terminate`; the ranks go on to the cut."""
    group = FakeGroup(2, [gate()])
    cut_at: dict[int, Order] = {}
    cut, go_on = group.scripts[CutAt], group.go_on
    group.scripts[CutAt] = cut_at.__setitem__
    group.scripts[Release] = lambda worker, order: (
        cut(worker, cut_at[worker]) if order.gate == gate() and order.then == "go on" else go_on(worker)
    )

    def handler() -> None:
        for reason in before:
            run.terminate(reason)
        group.interrupt()
        for _ in range(3):  # as a long evaluation would
            run.loop.pump()
        run.terminate("too late")

    run = make_run(group, handler)
    run.execute(None)
    return group, run


@pytest.mark.parametrize("before", [(), ("enough",)])
def test_ctrl_c_at_a_gate_ends_the_run_at_the_cut_behind_it(make_run: MakeRun, before: tuple[str, ...]) -> None:
    group, run = pressed_at_a_gate(make_run, *before)
    assert [(order.gate.event, order.then) for order in group.ordered(Release)] == [
        ("EPOCH_COMPLETED", "go on"),
        ("CUT", "interrupt"),
    ]
    assert (run.interrupted, run.stop_reason) == (True, before[0] if before else "interrupted")
    assert len(group.ordered(ProposeCut)) == 1


def test_the_end_is_where_the_ranks_finished(make_run: MakeRun) -> None:
    run = make_run(FakeGroup(2))
    run.execute(None)
    state = trainer_of(run).state
    assert (state.iteration, state.epoch, run.journal.iteration, run.journal.epoch) == (100, 5, 100, 5)
    assert events(run) == ["WORKER_BUILT"] * 2 + ["WORKER_JOINED"] * 2


# ---------------------------------------------------------------- the run is lost
def test_a_lost_lease_ends_the_run_with_who_has_it_and_asks_nobody_again(make_run: MakeRun) -> None:
    group = FakeGroup(2, [gate()])
    run = make_run(group)
    run.built = lambda: group.tell(LeaseLost(text="run 'r' was taken over by pid 8"))
    with pytest.raises(FencedError, match=r"^run 'r' was taken over by pid 8$"):
        run.execute(None)


# ---------------------------------------------------------------- the data
@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        (None, {"samples": 3}, None),
        ({}, {}, None),
        ({"samples": 3}, {"samples": 3}, None),
        ({"samples": 4}, {"samples": 3}, "run: data: samples: expected 4, as in the checkpoint, received 3; "),
        ({}, {"samples": 3}, "run: data: expected data with an order of its own, as in the checkpoint, received a map"),
        ({"samples": 3}, {}, "run: data: expected a map-style data set, .*, received data with an order of its own; "),
    ],
)
def test_a_position_in_other_data_is_refused(make_run: MakeRun, then: Any, now: Any, told: str | None) -> None:
    group = FakeGroup(2)
    build = group.scripts[Build]

    def with_data(worker: int, order: Any) -> None:
        build(worker, order)
        group.inbox[-1] = replace(group.inbox[-1], data=now)  # type: ignore[type-var]

    group.scripts[Build] = with_data
    run = make_run(group)
    if told is None:
        run.execute(None, then)
        return
    with pytest.raises(SpecError, match=f"^{told}"):
        run.execute(None, then)


def test_other_data_than_that_of_the_checkpoint_is_refused_before_training(make_run: MakeRun) -> None:
    group = FakeGroup(2)
    group.scripts[Build] = lambda worker, _: group.send(
        Built, worker, device="cpu", seconds=0.0, engines=("trainer", "evaluator"), state_bytes={}, metrics={},
        data={"samples": 12},
    )  # fmt: skip
    with pytest.raises(SpecError, match=r"^run: data: samples: expected 10, as in the checkpoint, received 12; "):
        make_run(group).execute(None, {"samples": 10})
    assert Go not in kinds(group, 0)
