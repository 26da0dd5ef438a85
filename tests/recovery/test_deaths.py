"""A rank dies, anywhere: the run goes on and ends, to the last bit, as if nothing had happened.

`RANKFIRE_FAULTS=all` has the whole matrix run, of places, ranks and world sizes; else a choice of it.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from orchestrator import Orchestrator
from tests.process_ranks import ProcessGroup
from tests.recovery.jobs import PER_EPOCH, Job, kill
from tests.recovery.program import WHERES, Fault

ALL = os.environ.get("RANKFIRE_FAULTS") == "all"
WHEN = {"evaluation": 2 * PER_EPOCH, "call": 2 * PER_EPOCH, "completed": 3 * PER_EPOCH}  # else in the second epoch
TO_THE_DRIVER = ("snapshot.taken", "save.planned", "save.frozen")
WRITING = ("shard.opened", "shard.half", "shard.synced", "rank_file.synced")
REWINDING = ("rewind.received", "rewind.restored")


def fault(where: str, rank: int, how: str = "kill") -> Fault:
    return Fault(where=where, iteration=WHEN.get(where, 11), rank=rank, how=how)


def choice(some: list[Any], everything: list[Any]) -> list[Any]:
    return everything if ALL else some


# ---------------------------------------------------------------- in the program
@pytest.mark.parametrize(
    ("where", "rank", "ranks"),
    choice(
        [
            ("forward", 1, 2),
            ("backward", 0, 2),
            ("all-reduce", 1, 3),
            ("step", 0, 2),
            ("handler", 1, 2),
            ("evaluation", 0, 3),
            ("call", 1, 2),
            ("completed", 0, 2),
        ],
        [(where, rank, ranks) for where in WHERES for ranks in (2, 3) for rank in range(ranks)],
    ),
)
def test_a_rank_is_killed_in_the_program(survives: Any, where: str, rank: int, ranks: int) -> None:
    job = Job(workers={"count": ranks, "spares": 1}, faults=[fault(where, rank)])
    survives(job, fired=[str(fault(where, rank))], lost=[rank])


OPTIONS = [
    {"static_graph": True},
    {"compression": "bf16", "gradient_as_bucket_view": True},
    {"compile": {"backend": "eager"}},
]
"""Arguments of `worker.prepare`; what comes of them is the same to the last bit too."""


@pytest.mark.parametrize("options", choice(OPTIONS[:1], OPTIONS), ids=str)
def test_a_rank_is_killed_whose_model_was_prepared_with_options(survives: Any, options: dict[str, Any]) -> None:
    job = Job(workers={"count": 3, "spares": 1}, faults=[fault("step", 1)], prepare=options)
    survives(job, fired=[str(fault("step", 1))], lost=[1])


@pytest.mark.parametrize("where", choice(["forward"], list(WHERES)))
def test_a_rank_ends_its_own_process(survives: Any, where: str) -> None:
    ended = survives(Job(faults=[fault(where, 1, "exit")]), fired=[str(fault(where, 1, "exit"))], lost=[1])
    assert "exit code 7" in ended.told("WORKER_LOST")[0]["text"]


def test_a_rank_dies_in_its_first_iteration_and_another_in_its_last(survives: Any) -> None:
    faults = [Fault(where="forward", iteration=1, rank=0), Fault(where="step", iteration=3 * PER_EPOCH, rank=1)]
    survives(Job(faults=faults), fired=sorted(map(str, faults)), lost=[0, 1])


def test_two_of_three_ranks_die_at_once(survives: Any) -> None:
    faults = [fault("forward", rank) for rank in (0, 2)]
    survives(Job(workers={"count": 3, "spares": 2}, faults=faults), fired=sorted(map(str, faults)), lost=[0, 2])


def test_without_a_spare_the_run_waits_for_a_new_worker(survives: Any) -> None:
    survives(Job(workers={"count": 2}, faults=[fault("backward", 1)]), fired=["backward-11-rank-1-kill"], lost=[1])


# ---------------------------------------------------------------- while it waits
@pytest.mark.parametrize("rank", choice([1], [0, 1]))
@pytest.mark.parametrize("moment", choice(["at_gate", "after_call"], ["at_gate", "after_call", "at_end"]))
def test_a_rank_is_killed_while_it_waits_at_a_gate(survives: Any, moment: str, rank: int) -> None:
    killed: list[int] = []

    def strike(run: Orchestrator, group: ProcessGroup) -> None:
        killed.append(rank)
        kill(rank)(run, group)

    moments: dict[str, Any] = {moment: strike if moment == "at_end" else {2: strike}}
    survives(Job(**moments), fired=[], lost=[rank])
    assert killed == [rank]


# ---------------------------------------------------------------- in what the ranks do for the run
@pytest.mark.parametrize(
    ("point", "rank"),
    choice(
        [
            *(("snapshot.taken", 1), ("save.planned", 0), ("save.frozen", 1), ("shard.opened", 1)),
            *(("shard.half", 0), ("shard.synced", 1), ("rank_file.synced", 0)),
        ],
        [(point, rank) for point in (*TO_THE_DRIVER, *WRITING) for rank in (0, 1)],
    ),
)
def test_a_rank_is_killed_in_a_snapshot_or_a_save(survives: Any, point: str, rank: int) -> None:
    ended = survives(Job(points=f"{point}=kill@{rank}#2!"), fired=[f"{point} kill {rank}"], lost=[rank])
    assert [one.manifest.iteration for one in ended.registry.committed()][-1] == 3 * PER_EPOCH


@pytest.mark.parametrize(
    ("point", "second"),
    choice([("rewind.received", 0), ("rewind.restored", 1)], [(p, second) for p in REWINDING for second in (0, 1)]),
)
def test_another_rank_dies_while_the_first_one_is_replaced(survives: Any, point: str, second: int) -> None:
    job = Job(workers={"count": 2, "spares": 2}, faults=[fault("forward", 1)], points=f"{point}=kill@{second}!")
    survives(job, fired=[str(fault("forward", 1)), f"{point} kill {second}"], lost=[1, second])
