"""Whose fault it was: every kind of evidence, and the one error that it ends in."""

from typing import Any

from orchestrator.errors import CheckpointError, SystemFailure, TrainingError, WorkerLostError
from orchestrator.verdict import Facts, tell_failures, verdict
from workers.messages import Fault
from workers.parcels import Failure
from workers.rank import Place

GONE = "ActorDiedError: the worker process died"


def fault(worker: int, kind: Any = "user", text: str = "wrong shape", traceback: str = "") -> Fault:
    failure = Failure(type_name="ValueError", text=text, traceback=traceback or f"Traceback of {worker}")
    return Fault(
        generation=0, worker=worker, rank=worker, seq=9, kind=kind, phase="training", iteration=7, failure=failure
    )


def facts(*faults: Fault, lost: tuple[int, ...] = (), world: int = 4) -> Facts:
    places = {n: Place(node=f"node-{n}", host=f"host{n}", address="10.0.0.1", pid=100 + n) for n in range(world)}
    return Facts(
        places=places,
        ranks={n: n for n in range(world)},
        phases={n: f"training, iteration {n}" for n in range(world)},
        faults=list(faults),
        lost=dict.fromkeys(lost, GONE),
    )


def test_a_users_exception_is_told_with_its_rank_and_its_traceback() -> None:
    error = verdict(facts(fault(2)))
    assert isinstance(error, TrainingError)
    assert str(error) == "rank 2 raised ValueError: wrong shape"
    assert (error.ranks, error.traceback) == ((2,), "Traceback of 2")


def test_the_same_exception_of_several_ranks_is_told_once() -> None:
    error = verdict(facts(fault(0), fault(2), fault(1)))
    assert str(error) == "ranks 0-2 raised ValueError: wrong shape"
    assert isinstance(error, TrainingError)
    assert (error.ranks, error.traceback) == ((0, 1, 2), "Traceback of 0")


def test_different_exceptions_are_all_told_the_first_with_its_traceback() -> None:
    error = verdict(facts(fault(1), fault(0, text="disk"), fault(2)))
    assert str(error) == "ranks 1-2 raised ValueError: wrong shape; rank 0 raised ValueError: disk"
    assert isinstance(error, TrainingError)
    assert (error.ranks, error.traceback) == ((1, 2), "Traceback of 1")


def test_every_exception_is_told_once_with_all_its_ranks() -> None:
    error = verdict(facts(fault(3), fault(2, text="disk"), fault(0), fault(1)))
    assert str(error) == "ranks 0-1, 3 raised ValueError: wrong shape; rank 2 raised ValueError: disk"


def test_a_users_exception_is_the_cause_of_lost_peers_and_broken_collectives() -> None:
    error = verdict(facts(fault(0, "communication", "gloo: closed"), fault(3), lost=(1,)))
    assert str(error) == "rank 3 raised ValueError: wrong shape"


def test_a_checkpoint_that_ranks_can_not_read_is_a_failure_of_the_system() -> None:
    gone = "checkpoint runs/r/step-5: can't be read: FileNotFoundError: shared.pt"
    error = verdict(facts(fault(0, "communication"), fault(2, "system", gone), fault(1, "system", gone), lost=(3,)))
    assert (type(error), str(error)) == (CheckpointError, f"{gone} (on ranks 1-2)")
    assert verdict(facts(fault(0, "system", gone), fault(1))).args == ("rank 1 raised ValueError: wrong shape",)


def test_a_lost_worker_is_named_with_rank_pid_and_node() -> None:
    error = verdict(facts(fault(0, "communication"), lost=(2,)))
    assert isinstance(error, WorkerLostError)
    assert str(error) == f"rank 2 (pid 102 on node node-2 (host2)) was lost: {GONE}"


def test_the_lowest_of_several_lost_ranks_is_told_first() -> None:
    error = verdict(facts(lost=(3, 1, 2)))
    assert isinstance(error, WorkerLostError)
    assert str(error) == f"rank 1 (pid 101 on node node-1 (host1)) was lost: {GONE}; lost as well: ranks 2-3"


def test_a_worker_that_was_lost_before_it_said_hello_is_named_by_its_number() -> None:
    error = verdict(Facts(lost={1: "unreachable"}))
    assert str(error) == "rank 1 (pid unknown on node unknown) was lost: unreachable"


def test_broken_collectives_tell_who_did_what() -> None:
    broken = fault(1, "communication", "gloo: timed out")
    error = verdict(facts(broken, world=3))
    assert isinstance(error, SystemFailure)
    assert not isinstance(error, WorkerLostError)
    assert str(error) == (
        "ranks lost contact with each other: rank 1 (training, iteration 7): ValueError: gloo: timed out; "
        "rank 0 was training, iteration 0; rank 2 was training, iteration 2"
    )


def test_broken_collectives_on_every_rank_leave_nobody_to_tell_of() -> None:
    error = verdict(facts(fault(0, "communication", "a"), fault(1, "communication", "b"), world=2))
    assert str(error) == (
        "ranks lost contact with each other: rank 0 (training, iteration 7): ValueError: a; "
        "rank 1 (training, iteration 7): ValueError: b"
    )


def test_workers_are_silent_until_they_failed_or_were_lost() -> None:
    assert facts(fault(0), fault(0), lost=(1,)).silent(3)
    assert not facts(fault(0), fault(2), lost=(1, 2)).silent(3)


def test_a_node_is_named_by_as_much_of_its_id_as_tells_it_apart() -> None:
    known = facts(lost=(0,), world=1)
    known.places[0] = Place(node="6411d897997856e92f95e04a", host="host0", address="10.0.0.1", pid=100)
    assert str(verdict(known)) == f"rank 0 (pid 100 on node 6411d8979978 (host0)) was lost: {GONE}"


def test_the_users_line_is_told_where_there_is_one() -> None:
    failures = {
        rank: Failure(type_name="ValueError", text="no", traceback="", place=place)
        for rank, place in ((0, "train.py:28"), (1, "train.py:28"))
    }
    assert tell_failures(failures) == "ranks 0-1 raised ValueError: no (train.py:28)"
