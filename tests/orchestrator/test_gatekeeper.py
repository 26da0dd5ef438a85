"""Gates on the driver: what is reduced, in which order, whose clock runs, and what the ranks are told."""

from typing import Any

import pytest

from orchestrator.run import Run
from tests.orchestrator.conftest import MakeRun, lines_of
from tests.orchestrator.fake_group import FakeGroup, gate
from workers.events import Events
from workers.orders import Go, Order, Release
from workers.parcels import Number


def test_samples_of_all_ranks_are_added_up(make_run: MakeRun) -> None:
    run = make_run(FakeGroup(3, [gate()]))
    run.execute(None)
    assert run.gates.samples == 120


def test_time_at_gates_is_no_training_time(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    group = FakeGroup(1, [gate()])
    train = group.go_on

    def five_seconds(worker: int, _: Order) -> None:
        now[0] += 5.0
        train(worker)

    group.scripts[Go] = five_seconds
    run = make_run(group, lambda: now.__setitem__(0, now[0] + 100.0))
    monkeypatch.setattr("orchestrator.stopwatch.time.monotonic", lambda: now[0])
    run.execute(None)
    assert run.gates.training_seconds == 5.0


def test_a_release_holds_only_the_metrics_of_its_engine(make_run: MakeRun) -> None:
    group = FakeGroup(1, [gate("COMPLETED", engine="evaluator"), gate()])
    run = make_run(group)
    state_of(run, "evaluator").metrics["accuracy"] = 0.5
    run.execute(None)
    assert [set(order.metrics) for order in group.ordered(Release)] == [{"accuracy", "loss"}, {"loss"}]


def state_of(run: Run, engine: str) -> Any:
    return run._buses[engine].state


def test_what_a_handler_writes_into_the_metrics_goes_to_the_ranks(make_run: MakeRun) -> None:
    group = FakeGroup(2, [gate()])
    run = make_run(group)
    run._buses["trainer"].listen(
        Events.EPOCH_COMPLETED, lambda: state_of(run, "trainer").metrics.__setitem__("score", 0.9)
    )
    run.execute(None)
    assert [order.metrics["score"] for worker in (0, 1) for order in group.ordered(Release, worker)] == [0.9, 0.9]


def test_the_state_stands_where_rank_0_stood(make_run: MakeRun) -> None:
    group = FakeGroup(2)
    group.scripts[Go] = lambda worker, _: (
        group.arrive(worker, gate(count=3), epoch=3, iteration=30, output={"loss": Number(value=float(worker))})
        if not group.ordered(Release, worker)
        else None
    )
    seen: list[tuple[int, int, int, Any]] = []
    run = make_run(group)
    state = state_of(run, "trainer")
    run._buses["trainer"].listen(
        Events.EPOCH_COMPLETED,
        lambda: seen.append((state.epoch, state.iteration, state.epoch_length, state.output)),
    )
    run.execute(None)
    assert seen == [(3, 30, 10, {"loss": 0.5})]
    assert state.counters[Events.EPOCH_COMPLETED] == 3


def test_an_epoch_that_is_only_watched_is_in_the_journal_too(make_run: MakeRun) -> None:
    group = FakeGroup(2)

    def observe(worker: int, _: Order) -> None:
        group.observe(worker, gate())
        group.finish(worker)

    group.scripts[Go] = observe
    run = make_run(group)
    run.execute(None)
    assert [line["event"] for line in lines_of(run)].count("EPOCH_COMPLETED") == 1
    assert group.ordered(Release) == []


def test_an_evaluators_epoch_is_none_of_the_journals(make_run: MakeRun) -> None:
    run = make_run(FakeGroup(1, [gate(engine="evaluator", visit=1)]))
    run.execute(None)
    assert "EPOCH_COMPLETED" not in [line["event"] for line in lines_of(run)]
    assert (state_of(run, "evaluator").iteration, run.gates.samples) == (10, 0)


def test_a_firing_that_one_rank_never_reported_is_left_out(make_run: MakeRun) -> None:
    group = FakeGroup(2)

    def observe(worker: int, _: Order) -> None:
        for count in (1, 2, 3)[worker:]:
            group.observe(worker, gate("ITERATION_COMPLETED", count), iteration=count)
        group.finish(worker)

    group.scripts[Go] = observe
    seen: list[int] = []
    run = make_run(group)
    trainer = state_of(run, "trainer")
    run._buses["trainer"].listen(Events.ITERATION_COMPLETED, lambda: seen.append(trainer.iteration))
    run.execute(None)
    assert seen == [2, 3]
    dropped = [line for line in lines_of(run) if line["event"] == "OBSERVATIONS_DROPPED"]
    assert [line["count"] for line in dropped] == [1]
