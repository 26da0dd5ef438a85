"""The driver's exceptions: exit codes, texts, pickling."""

import pickle

import pytest

from orchestrator.errors import (
    CapacityError,
    CheckpointError,
    DivergenceError,
    FencedError,
    GateMismatchError,
    HandlerError,
    HeadLostError,
    NotFiniteError,
    RankfireError,
    RecoveryError,
    RunHeldError,
    RunInterrupted,
    SpecError,
    StartError,
    SystemFailure,
    TrainingError,
    WorkerLostError,
    exit_code_of,
    explain,
    name_ranks,
)
from workers.errors import ProgramError

EXAMPLES = [
    (SpecError("job.yaml:7: a", "job.yaml:9: b"), 2, "job.yaml:7: a\njob.yaml:9: b"),
    (
        TrainingError("ranks 0-2, 5 raised ValueError: boom", ranks=[2, 0, 1, 5], traceback="Traceback ..."),
        1,
        "ranks 0-2, 5 raised ValueError: boom",
    ),
    (
        HandlerError.in_handler("validate", "EPOCH_COMPLETED 3", "KeyError: 'loss'", traceback="Traceback ..."),
        1,
        "driver handler validate at EPOCH_COMPLETED 3 raised KeyError: 'loss'",
    ),
    (
        NotFiniteError.at(17, {0: "loss is nan", 2: "loss is inf", 1: "loss is nan"}),
        1,
        "iteration 17: expected finite numbers, received on ranks 0-1: loss is nan; on rank 2: loss is inf; look at "
        "the data of that iteration, lower the learning rate, or clip gradients",
    ),
    (
        GateMismatchError.at({"EPOCH_COMPLETED 3": [0], "ITERATION_COMPLETED 40": [1, 2]}),
        1,
        "gate: expected all ranks at the same event, received rank 0 at EPOCH_COMPLETED 3, ranks 1-2 at "
        "ITERATION_COMPLETED 40; give every rank the same number of iterations and fire events outside "
        "rank-dependent branches",
    ),
    (SystemFailure("the cluster is gone"), 3, "the cluster is gone"),
    (
        WorkerLostError.of(1, pid=4242, node="10.0.0.5", cause="killed by signal 9"),
        3,
        "rank 1 (pid 4242 on node 10.0.0.5) was lost: killed by signal 9",
    ),
    (
        HeadLostError.at("10.0.0.1:6379", seconds=26.3),
        3,
        "cluster: expected its head (GCS) to answer at 10.0.0.1:6379, received nothing for 26 s; start the cluster "
        "anew; for a head that comes back give it a storage (RAY_gcs_storage), and raise "
        "RAY_gcs_rpc_server_reconnect_timeout_s on all nodes and here to three times what that takes",
    ),
    (
        WorkerLostError.of(1, pid=None, node="10.0.0.5", cause="its stream broke"),
        3,
        "rank 1 (pid unknown on node 10.0.0.5) was lost: its stream broke",
    ),
    (
        RecoveryError.spent("oom", allowed=2, seconds=3600.0, story="rank 1 was lost: killed"),
        3,
        "recovery.restarts.oom: expected at most 2 within 3600 s, received one more: rank 1 was lost: killed; mend the "
        "cause, or allow more; the same command goes on from the newest checkpoint",
    ),
    (
        RecoveryError.stuck("iteration 7", times=3, story="rank 1 was lost: killed", samples="samples 48-55"),
        3,
        "recovery: expected iteration 7 to succeed in one of 3 attempts, received its failure number 3: rank 1 was "
        "lost: killed; look at what it is given: samples 48-55; the same command goes on from the newest checkpoint",
    ),
    (
        RecoveryError.no_progress(3, story="rank 1 was lost: killed"),
        3,
        "recovery: expected training to come farther after one of 3 recoveries, received another failure: rank 1 was "
        "lost: killed; mend the cause; the same command goes on from the newest checkpoint",
    ),
    (
        CapacityError.of(asked="64 workers of 1 CPU", there="8 CPUs on 2 nodes"),
        3,
        "cluster: expected room for 64 workers of 1 CPU, received 8 CPUs on 2 nodes; "
        "ask for fewer workers or add nodes",
    ),
    (
        StartError.late([3], step="join", seconds=60.0),
        3,
        "cluster.start_timeout: expected all ranks to join within 60 s, received nothing from rank 3; see that their "
        "nodes are up and have room, or raise cluster.start_timeout",
    ),
    (
        DivergenceError.at(500, odd=["rank 1 (pid 7 on host)"], what="model.weight differs", agreed=None),
        3,
        "iteration 500: expected the same model on all ranks, bit by bit, received another one on rank 1 (pid 7 on "
        "host): model.weight differs; test the memory and device there, and look for code that changes a model on some "
        "ranks only",
    ),
    (
        CheckpointError.at("step-00000100", "model.pt has the wrong sha256"),
        3,
        "checkpoint step-00000100: model.pt has the wrong sha256",
    ),
    (
        RunHeldError.by("digits", "pid 7 on host, running it since 2026-01-01 10:00:00"),
        3,
        "run 'digits': expected nobody to be running it, received pid 7 on host, running it since 2026-01-01 10:00:00; "
        "wait for it to end, stop it, or choose another run id",
    ),
    (
        FencedError.by("digits", "pid 8 on other"),
        3,
        "run 'digits' was taken over by pid 8 on other: this process was silent for longer than its lease, "
        "so it ends here and writes nothing more",
    ),
    (RunInterrupted(), 130, "interrupted"),
]


@pytest.mark.parametrize(("error", "code", "text"), EXAMPLES)
def test_every_error_has_its_exit_code_and_text(error: RankfireError, code: int, text: str) -> None:
    assert exit_code_of(error) == code
    assert str(error) == text


@pytest.mark.parametrize("error", [error for error, _, _ in EXAMPLES])
def test_every_error_survives_pickling_with_its_facts(error: RankfireError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))


def test_every_class_of_the_tree_is_in_the_examples() -> None:
    import orchestrator.errors

    classes = {thing for thing in vars(orchestrator.errors).values() if isinstance(thing, type)}
    tree = {thing for thing in classes if issubclass(thing, RankfireError)}
    assert tree - {RankfireError} == {type(error) for error, _, _ in EXAMPLES}


def test_an_error_of_the_ranks_side_counts_as_the_users() -> None:
    assert exit_code_of(ProgramError("build returned None")) == 1


def test_a_mismatch_of_gates_is_a_users_error_that_knows_its_ranks() -> None:
    error = GateMismatchError.at({"STARTED": [1], "COMPLETED": [0]})
    assert isinstance(error, TrainingError)
    assert error.ranks == (0, 1)


def test_explain_leaves_out_a_place_that_is_empty() -> None:
    assert explain("", expected="a", received="b", mend="c") == "expected a, received b; c"
    assert explain("w", expected="a", received="b", mend="c") == "w: expected a, received b; c"


@pytest.mark.parametrize(
    ("ranks", "words"),
    [([3], "rank 3"), ([1, 0], "ranks 0-1"), ([0, 2, 2], "ranks 0, 2"), ([7, 5, 6, 1], "ranks 1, 5-7")],
)
def test_ranks_are_named_in_spans(ranks: list[int], words: str) -> None:
    assert name_ranks(ranks) == words
