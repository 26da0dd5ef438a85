"""After a fault: recover or stop, back to which snapshot, and who takes the places of the lost."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.budgets import Budgets, Progress
from orchestrator.causes import Cause
from orchestrator.errors import CapacityError, CheckpointError, RecoveryError, TrainingError, WorkerLostError
from orchestrator.recovery import Decision, GoOn, Placement, Recover, Stop, choose_snapshot, judge, place_losses
from orchestrator.spec import RestartsSpec
from orchestrator.verdict import Facts
from workers.messages import Fault
from workers.parcels import Failure, GateKey, SnapshotLabel
from workers.rank import Place

GONE = "ActorDiedError: the worker process died"
GATE = GateKey(engine="trainer", event="EPOCH_COMPLETED", count=1)
OLD, NEW = SnapshotLabel(iteration=4), SnapshotLabel(iteration=8)
AT_GATE = SnapshotLabel(iteration=8, gate=GATE)
AFTER_CALL = SnapshotLabel(iteration=8, gate=GATE, order=3)


# -------------------------------------------------------------------- judge
def fault(worker: int, kind: Any = "communication") -> Fault:
    failure = Failure(type_name="RuntimeError", text="closed by peer", traceback="")
    return Fault(
        generation=0, worker=worker, rank=worker, seq=9, kind=kind, phase="training", iteration=7, failure=failure
    )


def facts(*faults: Fault, lost: Mapping[int, str] | None = None, world: int = 4, **more: Any) -> Facts:
    places = {n: Place(node=f"node-{n}", host=f"host{n}", address="10.0.0.1", pid=100 + n) for n in range(world)}
    ranks = {n: n for n in range(world)}
    return Facts(places=places, ranks=ranks, faults=list(faults), lost=dict(lost or {}), **more)


class Judge:
    """Judges what happens to one run, one fault after the other."""

    def __init__(self, **restarts: int) -> None:
        self.budgets = Budgets(RestartsSpec(**restarts))
        self.progress = Progress()
        self.now = 0.0

    def __call__(self, known: Facts, iteration: int | None = None, **more: Any) -> Decision:
        self.now += 1.0
        place = {"budgets": self.budgets, "progress": self.progress, "now": self.now, "iteration": iteration}
        return judge(known, **(place | more))

    def charged(self) -> dict[Cause, int]:
        """Recoveries so far by cause; asking charges one more, so once a test."""
        numbers = {cause: self.budgets.charge(cause, self.now).number - 1 for cause in get_args(Cause)}
        return {cause: number for cause, number in numbers.items() if number}


def recovered(decision: Decision) -> Recover:
    assert isinstance(decision, Recover)
    return decision


def ended(decision: Decision) -> Exception:
    assert isinstance(decision, Stop)
    return decision.error


def test_a_lost_worker_is_recovered_from_and_told() -> None:
    decision = recovered(Judge()(facts(fault(0), fault(1), lost={2: GONE}), iteration=7))
    assert decision.lost == {2: "crash"}
    assert (decision.causes, decision.pause) == (("crash",), 0.0)
    assert decision.story == f"rank 2 (pid 102 on node node-2 (host2)) was lost: {GONE}"


def test_ranks_are_told_by_number_not_by_worker() -> None:
    known = facts(lost={3: GONE, 1: GONE})
    known.ranks = {0: 0, 1: 2, 2: 3, 3: 1}
    assert list(recovered(Judge()(known, iteration=7)).lost.items()) == [(1, "crash"), (2, "crash")]


def test_many_ranks_lost_at_once_are_one_recovery() -> None:
    judged = Judge(crash=1)
    recovered(judged(facts(lost=dict.fromkeys(range(3), GONE)), iteration=7))
    assert judged.charged() == {"crash": 1}


def test_each_cause_is_charged_once_the_worst_first() -> None:
    judged = Judge()
    lost = {0: GONE, 1: "OutOfMemoryError: low on memory", 2: "its stream ended", 3: "killed"}
    decision = recovered(judged(facts(lost=lost, draining={2}, hung={3}), iteration=7))
    assert decision.lost == {0: "crash", 1: "oom", 2: "preemption", 3: "hang"}
    assert decision.causes == ("oom", "hang", "crash", "preemption")
    assert judged.charged() == dict.fromkeys(("preemption", "crash", "oom", "hang"), 1)


def test_contact_that_broke_while_all_live_is_the_networks() -> None:
    decision = recovered(Judge()(facts(*map(fault, range(4))), iteration=7))
    assert (decision.lost, decision.causes) == ({}, ("network",))


def test_ranks_that_wait_for_each_other_are_a_hang_and_three_in_one_iteration_are_enough() -> None:
    judged = Judge()
    known = facts(standing="ranks wait for each other")
    for _ in range(2):
        decision = recovered(judged(known, iteration=7))
        assert (decision.lost, decision.causes, decision.story) == ({}, ("hang",), "ranks wait for each other")
    error = ended(judged(known, iteration=7))
    assert "expected iteration 7 to succeed in one of 3 attempts" in str(error)
    assert "its failure number 3: ranks wait for each other" in str(error)
    assert judged.charged() == {"hang": 3}


def test_who_is_lost_is_charged_instead_of_ranks_that_wait_for_it() -> None:
    decision = recovered(Judge()(facts(lost={2: GONE}, standing="ranks wait for each other"), iteration=7))
    assert decision.causes == ("crash",)


def test_a_lost_spare_concerns_no_rank_and_costs_nothing() -> None:
    judged = Judge()
    assert judged(facts(lost={3: GONE}, spares={3}), iteration=7) == GoOn(spares=(3,))
    assert judged.charged() == {}


def test_a_spare_that_is_lost_with_a_rank_is_not_among_the_ranks() -> None:
    known = facts(lost={2: GONE, 3: GONE}, spares={3})
    assert recovered(Judge()(known, iteration=7)).lost == {2: "crash"}
    decision = recovered(Judge()(facts(fault(0), lost={3: GONE}, spares={3}), iteration=7))
    assert (decision.lost, decision.causes) == ({}, ("network",))


def test_a_users_exception_wins_over_every_loss_and_costs_nothing() -> None:
    judged = Judge()
    error = ended(judged(facts(fault(0), fault(1, "user"), lost={2: GONE}), iteration=7))
    assert isinstance(error, TrainingError)
    assert error.ranks == (1,)
    assert judged.charged() == {}


def test_a_checkpoint_that_ranks_can_not_read_is_not_tried_again() -> None:
    assert isinstance(ended(Judge()(facts(fault(1, "system"), lost={2: GONE}))), CheckpointError)


def test_a_job_that_wants_to_stop_at_a_loss_stops() -> None:
    assert isinstance(ended(Judge()(facts(lost={2: GONE}), iteration=7, on_loss="stop")), WorkerLostError)


def test_a_spent_budget_ends_the_run_with_the_story() -> None:
    judged = Judge(oom=1)
    lost = facts(lost={2: "OutOfMemoryError: low on memory"})
    recovered(judged(lost, iteration=1))
    error = ended(judged(lost, iteration=9))
    assert isinstance(error, RecoveryError)
    assert error.exit_code == 3
    assert str(error) == (
        "recovery.restarts.oom: expected at most 1 within 3600 s, received one more: rank 2 (pid 102 on node node-2 "
        "(host2)) was lost: OutOfMemoryError: low on memory; mend the cause, or allow more; the same command goes on "
        "from the newest checkpoint"
    )


def test_an_iteration_that_fails_three_times_ends_the_run_with_its_samples() -> None:
    judged = Judge()
    lost = facts(lost={2: GONE})
    recovered(judged(lost, iteration=7))
    recovered(judged(lost, iteration=7))
    error = ended(judged(lost, iteration=7, samples=lambda iteration: f"samples of {iteration}: 48-55"))
    assert str(error) == (
        "recovery: expected iteration 7 to succeed in one of 3 attempts, received its failure number 3: rank 2 (pid "
        f"102 on node node-2 (host2)) was lost: {GONE}; look at what it is given: samples of 7: 48-55; the same "
        "command goes on from the newest checkpoint"
    )


def test_a_gate_that_fails_three_times_is_not_blamed_on_samples() -> None:
    judged = Judge()
    for _ in range(2):
        recovered(judged(facts(lost={2: GONE}), iteration=8, gate=GATE))
    error = ended(judged(facts(lost={2: GONE}), iteration=8, gate=GATE, samples=lambda iteration: "samples"))
    assert "expected iteration 8 at trainer EPOCH_COMPLETED #1 to succeed" in str(error)
    assert "look at what happens there" in str(error)


def test_recoveries_that_get_nowhere_end_the_run() -> None:
    judged = Judge()
    for iteration in (9, 3, None):
        recovered(judged(facts(lost={2: GONE}), iteration=iteration))
    assert str(ended(judged(facts(lost={2: GONE}), iteration=5))) == (
        "recovery: expected training to come farther after one of 3 recoveries, received another failure: rank 2 (pid "
        f"102 on node node-2 (host2)) was lost: {GONE}; mend the cause; the same command goes on from the newest "
        "checkpoint"
    )


def test_preemption_goes_on_for_ever() -> None:
    judged = Judge()
    for _ in range(100):
        assert recovered(judged(facts(lost={2: GONE}, draining={2}), iteration=7)).causes == ("preemption",)


# -------------------------------------------------------------------- which snapshot
@pytest.mark.parametrize(
    ("held", "own", "lost", "chosen"),
    [
        ({0: [OLD, NEW], 1: [OLD, NEW]}, {2: [OLD, NEW]}, [2], NEW),
        ({0: [OLD, NEW], 1: [OLD]}, {2: [OLD, NEW]}, [2], OLD),  # rank 1 had not come to the newer one
        ({0: [OLD, NEW], 1: [OLD, NEW]}, {2: [OLD]}, [2], OLD),  # what was rank 2's own died with it
        ({0: [OLD, NEW]}, {1: [NEW], 2: [OLD]}, [1, 2], None),
        ({0: [OLD, NEW]}, {}, [1], None),
        ({0: [OLD, NEW], 1: [NEW]}, {}, [], NEW),  # contact broke, nobody is lost
        ({0: [OLD], 1: [NEW]}, {}, [], None),
        ({0: [OLD, NEW], 1: []}, {}, [], None),
        ({}, {0: [NEW]}, [0], None),
        ({0: [AT_GATE, AFTER_CALL]}, {1: [AT_GATE, AFTER_CALL]}, [1], AFTER_CALL),
        ({0: [AT_GATE, AFTER_CALL]}, {1: [AT_GATE]}, [1], AT_GATE),
        ({0: [NEW, AT_GATE], 1: [NEW, AT_GATE]}, {}, [], AT_GATE),  # the same iteration, in the order of taking
    ],
)
def test_all_go_back_to_the_newest_snapshot_that_can_be_had(
    held: Mapping[int, Sequence[SnapshotLabel]],
    own: Mapping[int, Collection[SnapshotLabel]],
    lost: Collection[int],
    chosen: SnapshotLabel | None,
) -> None:
    assert choose_snapshot(held, own, lost) == chosen


TAKEN = [
    SnapshotLabel(iteration=0, gate=GateKey(engine="trainer", event="STARTED", count=1)),
    *(SnapshotLabel(iteration=n) for n in (2, 4)),
    SnapshotLabel(iteration=4, gate=GATE),
    SnapshotLabel(iteration=4, gate=GATE, order=2),
    SnapshotLabel(iteration=6),
]
"""What a rank takes in its life, in this order."""


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[int, list[SnapshotLabel]], dict[int, set[SnapshotLabel]], list[int]]:
    """Ranks that have come to neighbouring points of the same life; some are lost, with some of their reports."""
    at = draw(st.integers(1, len(TAKEN)))
    ranks = draw(st.permutations(range(draw(st.integers(1, 6)))))
    lost = draw(st.lists(st.sampled_from(ranks), unique=True, max_size=len(ranks)))
    come = {rank: max(at - draw(st.integers(0, 1)), 1) for rank in ranks}
    rings = {rank: TAKEN[max(n - 2, 0) : n] for rank, n in come.items()}
    own = {rank: set(draw(st.lists(st.sampled_from(rings[rank])))) for rank in ranks}
    return {rank: rings[rank] for rank in ranks if rank not in lost}, own, lost


@given(world=worlds())
def test_the_choice_can_be_had_and_nothing_newer_can(world: Any) -> None:
    held, own, lost = world
    chosen = choose_snapshot(held, own, lost)
    fit = [
        label
        for label in TAKEN
        if held and all(label in ring for ring in held.values()) and all(label in own[rank] for rank in lost)
    ]
    assert chosen == (fit[-1] if fit else None)


@given(world=worlds(), data=st.data())
def test_the_choice_does_not_depend_on_the_order_in_which_survivors_answered(world: Any, data: st.DataObject) -> None:
    held, own, lost = world
    shuffled = {rank: held[rank] for rank in data.draw(st.permutations(list(held)))}
    assert choose_snapshot(shuffled, own, lost) == choose_snapshot(held, own, lost)


@given(world=worlds())
def test_survivors_of_one_life_that_lost_nobody_always_share_a_snapshot_from_the_second_on(world: Any) -> None:
    held, _, _ = world
    if held and all(len(ring) == 2 for ring in held.values()):
        assert choose_snapshot(held, {}, []) is not None


# -------------------------------------------------------------------- who takes which place
MEMBERS = {0: 10, 1: 11, 2: 12, 3: 13}


def placed(*args: Any, **kwargs: Any) -> Placement:
    placement = place_losses(*args, **kwargs)
    assert isinstance(placement, Placement)
    return placement


def test_a_spare_takes_the_lost_rank_and_the_others_keep_theirs() -> None:
    placement = placed(MEMBERS, [1], [20, 21])
    assert placement.workers == {0: 10, 1: 20, 2: 12, 3: 13}
    assert (placement.start, placement.newcomers, placement.world_size) == ((), (1,), 4)


def test_a_spare_on_the_node_of_the_lost_rank_is_taken_first() -> None:
    nodes = {11: "a", 12: "b", 20: "b", 21: "a"}
    assert placed(MEMBERS, [1, 2], [20, 21], nodes=nodes).workers == {0: 10, 1: 21, 2: 20, 3: 13}
    assert placed(MEMBERS, [1, 2], [20], nodes=nodes).workers == {0: 10, 2: 20, 3: 13}


def test_what_spares_do_not_fill_is_started_anew() -> None:
    placement = placed(MEMBERS, [0, 2, 3], [20])
    assert (placement.workers, placement.start) == ({0: 20, 1: 11}, (2, 3))
    assert placement.former == {1: 1}


def test_when_new_workers_can_not_be_had_the_gaps_are_closed_in_order() -> None:
    placement = placed(MEMBERS, [0, 2], [20], can_start=False, minimum=2)
    assert placement.workers == {0: 20, 1: 11, 2: 13}
    assert placement.former == {1: 1, 2: 3}
    assert (placement.start, placement.newcomers, placement.world_size) == ((), (0,), 3)


def test_nobody_lost_means_that_all_stay() -> None:
    placement = placed(MEMBERS, [], [20], can_start=False)
    assert (placement.workers, placement.start, placement.newcomers) == (MEMBERS, (), ())


def test_below_the_minimum_the_run_stops() -> None:
    decision = place_losses(MEMBERS, [0, 2, 3], [20], can_start=False, minimum=3)
    assert isinstance(decision, Stop)
    assert isinstance(decision.error, CapacityError)
    assert str(decision.error) == (
        "cluster: expected room for a new worker for ranks 2-3, received none in time, and 2 of at least 3 left; add "
        "nodes, or let fewer ranks go on (workers.min); the same command goes on from the newest checkpoint"
    )


def test_a_world_of_fixed_size_stops() -> None:
    assert isinstance(place_losses(MEMBERS, [3], [], can_start=False), Stop)


@given(
    world=st.integers(1, 8),
    data=st.data(),
    spares=st.lists(st.integers(20, 25), unique=True, max_size=4),
    can_start=st.booleans(),
    minimum=st.one_of(st.none(), st.integers(1, 8)),
)
def test_a_placement_is_a_world_without_gaps_in_which_survivors_keep_their_order(
    world: int, data: st.DataObject, spares: list[int], can_start: bool, minimum: int | None
) -> None:
    members = {rank: 10 + rank for rank in data.draw(st.permutations(range(world)))}
    lost = data.draw(st.lists(st.sampled_from(range(world)), unique=True))
    nodes = data.draw(st.dictionaries(st.sampled_from([*members.values(), *spares]), st.sampled_from("ab")))
    placement = place_losses(members, lost, spares, nodes=nodes, can_start=can_start, minimum=minimum)
    left = min(world, world - len(lost) + len(spares))
    if isinstance(placement, Stop):
        assert not can_start
        assert left < (world if minimum is None else minimum)
        return
    assert sorted([*placement.workers, *placement.start]) == list(range(placement.world_size))
    assert placement.world_size == (world if can_start else left)
    assert len(set(placement.workers.values())) == len(placement.workers)
    stayed = [placement.workers[rank] for rank in sorted(placement.former)]
    assert stayed == sorted(worker for rank, worker in members.items() if rank not in lost)
    assert all(placement.workers[new] == members[old] for new, old in placement.former.items())
    assert set(placement.workers.values()) - set(members.values()) <= set(spares)
