"""From workers to ranks: who gets which rank, and what the ranks are told to build and to join."""

from typing import Any

from tests.orchestrator.conftest import MakeRun, lines_of
from tests.orchestrator.fake_group import FakeGroup
from workers.messages import Built, Hello, Pulse
from workers.orders import Build, Go, Join
from workers.parcels import LoadPoint
from workers.rank import Place


def scattered() -> FakeGroup:
    """Four workers that come up in any order, on two nodes by turns."""
    group = FakeGroup(4)

    def start() -> None:
        for worker in (3, 1, 0, 2):
            node = "ab"[worker % 2]
            group.send(Hello, worker, place=Place(node=node, host=node, address="127.0.0.1", pid=worker))

    group.start = start  # type: ignore[method-assign]
    return group


def test_ranks_are_dealt_by_node_whoever_came_first(make_run: MakeRun) -> None:
    group = scattered()
    make_run(group).execute(None)
    members = {worker: group.ordered(Build, worker)[0].membership for worker in range(4)}
    assert {worker: (one.rank, one.node_rank, one.local_rank) for worker, one in members.items()} == {
        0: (0, 0, 0), 2: (1, 0, 1), 1: (2, 1, 0), 3: (3, 1, 1),
    }  # fmt: skip
    assert [group.ordered(Join, worker)[0].membership for worker in range(4)] == [members[n] for n in range(4)]


def test_orders_go_to_the_worker_that_holds_the_rank(make_run: MakeRun) -> None:
    group = scattered()
    run = make_run(group)
    run.ranks.start()
    run.ranks.place()
    group.scripts[Go] = lambda worker, order: None
    group.orders.clear()
    for rank in range(4):
        run.ranks.order(rank, Go(max_epochs=1, max_iters=None, epoch_length=None))
    assert [worker for worker, _ in group.orders] == [0, 2, 1, 3]


def test_all_ranks_join_with_the_same_state_store_and_timeout(make_run: MakeRun) -> None:
    group = FakeGroup(2)
    point = LoadPoint(url="/runs/x", world_size=3)
    make_run(group).execute(point)
    joins = [group.ordered(Join, worker)[0] for worker in range(2)]
    six_hang_timeouts = 1800.0
    assert [(order.load, order.store, order.timeout) for order in joins] == [(point, None, six_hang_timeouts)] * 2


def test_ranks_in_processes_of_their_own_meet_at_a_store(make_run: MakeRun) -> None:
    group = FakeGroup(2)
    group.needs_store = True
    make_run(group).execute(None)
    stores = [group.ordered(Join, worker)[0].store for worker in range(2)]
    assert stores[0] == stores[1]
    assert stores[0][0] == "127.0.0.1"
    assert stores[0][1] > 0


def test_the_program_is_known_by_what_rank_0_built(make_run: MakeRun) -> None:
    group = FakeGroup(2)
    group.scripts[Build] = lambda worker, order: group.send(
        Built, worker, device="cpu", seconds=0.0, engines=("trainer", "evaluator"), state_bytes={},
        data={"length": 9 + worker}, metrics={"trainer": {"loss": f"empty copy of {worker}"}},
    )  # fmt: skip
    run = make_run(group)
    run.execute(None)
    assert run.ranks.programs.engines == ("trainer", "evaluator")
    assert run.ranks.programs.empty_metrics("trainer") == {"loss": "empty copy of 0"}
    assert run.ranks.programs.empty_metrics("evaluator") == {}
    assert run.ranks.programs.data == {"length": 9}


def test_the_journal_tells_in_which_generation_a_line_was_written(make_run: MakeRun) -> None:
    run = make_run(FakeGroup(2))
    run.execute(None)
    assert {line["generation"] for line in lines_of(run)} == {0}
    run.ranks.announce()
    run.journal.write("WORKER_LOST")
    assert lines_of(run)[-1]["generation"] == run.ranks.generation == 1


def test_who_was_told_as_joined_after_a_loss_in_the_first_join_is_not_told_again(make_run: MakeRun) -> None:
    run = make_run(FakeGroup(2))
    join = run.ranks.join

    def lose_one_meanwhile(*given: Any, **named: Any) -> None:
        join(*given, **named)
        run.ranks.tell_joined([1])  # as for a newcomer that takes a lost rank's place

    run.ranks.join = lose_one_meanwhile  # type: ignore[method-assign]
    run.execute(None)
    assert [line["rank"] for line in lines_of(run) if line["event"] == "WORKER_JOINED"] == [1, 0]


def test_where_a_rank_was_that_there_is_no_more_is_forgotten(make_run: MakeRun) -> None:
    group = FakeGroup(3)
    run = make_run(group)
    run.execute(None)
    for worker in range(3):
        group.send(
            Pulse, worker, phase="training", iteration=7, epoch=1, moves=0, idle=0.0, busy=0.0, samples=0, drops=0,
            output={},
        )  # fmt: skip
        run.loop.pump()
    assert sorted(run.loop.pulses) == [0, 1, 2]
    run.ranks.deal([0, 2])
    assert sorted(run.loop.pulses) == [0, 1]
