"""What goes wrong on real Ray ends with one clear error, and with nothing left: no process, actor, placement group."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator import (
    Best,
    CapacityError,
    Checkpoint,
    GateMismatchError,
    HandlerError,
    Orchestrator,
    SpecError,
    TrainingError,
    WorkerLostError,
)
from orchestrator.journal import read_journal
from tests.journeys import programs
from tests.leftovers import alive_in_ray
from tests.waiting import expect_none
from workers import Events

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(autouse=True)
def nothing_lives_on() -> Iterator[None]:
    """After every test: no actor, no placement group."""
    yield
    expect_none(alive_in_ray, "left in Ray")


def make(program: Any, folder: Path, recovery: Any = None, **config: Any) -> Orchestrator:
    return Orchestrator(program, run="bad", workers=2, config={"rank": 1, **config}, recovery=recovery, storage=folder)


def journal_of(folder: Path) -> list[dict[str, Any]]:
    return list(read_journal(folder / "bad" / "journal.jsonl"))


def ranks_are_gone(folder: Path) -> bool:
    pids = [line["pid"] for line in journal_of(folder) if line["event"] == "WORKER_JOINED"]
    return bool(pids) and not any(runs(pid) for pid in pids)


def runs(pid: int) -> bool:
    """Whether a process is there, other than as a zombie that its raylet has yet to reap."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_build_that_raises_on_one_rank_names_it_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"^rank 1 raised ValueError: no such colour: mauve \(programs.py:\d+\)$"
    ) as caught:
        make(programs.raises_in_build, tmp_path).run(max_epochs=1)
    assert caught.value.ranks == (1,)
    assert caught.value.traceback.count('raise ValueError("no such colour: mauve")') == 1


def test_build_that_returns_no_program_is_told_once_for_all_ranks(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        make(programs.returns_nothing, tmp_path).run(max_epochs=1)
    assert str(caught.value) == (
        "ranks 0-1 raised ProgramError: returns_nothing(worker): expected it to return a Program, received NoneType; "
        "end it with `return Program(engines=…, data=…, state=…)`"
    )


def test_an_exception_in_the_step_stops_all_ranks_and_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"""^rank 1 raised KeyError: "column 'age'" \(programs.py:\d+\)$"""
    ) as caught:
        make(programs.raises_in_step, tmp_path).run(max_epochs=2)
    assert caught.value.traceback.count("""raise KeyError("column 'age'")""") == 1
    assert caught.value.exit_code == 1
    assert ranks_are_gone(tmp_path)
    assert journal_of(tmp_path)[-1]["event"] == "RUN_FAILED"


def test_an_exception_in_a_driver_handler_names_it_and_ends_the_waiting_ranks(tmp_path: Path) -> None:
    orchestrator = make(programs.linear, tmp_path)

    @orchestrator.on(Events.EPOCH_COMPLETED(once=2))
    def divide(run: Orchestrator) -> None:
        _ = 1 / 0

    with pytest.raises(HandlerError, match=r"^driver handler divide \(.*test_bad_input.py:\d+\) at") as caught:
        orchestrator.run(max_epochs=3)
    assert str(caught.value).endswith("at EPOCH_COMPLETED #2 raised ZeroDivisionError: division by zero")
    assert ranks_are_gone(tmp_path)


def test_an_exception_in_a_handler_on_rank_0_names_the_rank(tmp_path: Path) -> None:
    orchestrator = make(programs.linear, tmp_path)

    @orchestrator.on(Events.EPOCH_COMPLETED(once=2), rank=0)
    def open_file() -> None:
        Path("/no/such/file").read_text()

    with pytest.raises(
        TrainingError, match=r"^rank 0 raised FileNotFoundError: .*'/no/such/file' \(test_bad_input.py:\d+\)$"
    ):
        orchestrator.run(max_epochs=3)
    assert ranks_are_gone(tmp_path)


def test_a_handler_that_can_not_be_pickled_is_named_before_anything_starts(tmp_path: Path) -> None:
    orchestrator, lock = make(programs.linear, tmp_path), threading.Lock()

    def guarded(engine: Any) -> None:
        with lock:
            pass

    with pytest.raises(SpecError, match=r"^orchestrator.on\(rank=0\): .*guarded: TypeError: cannot pickle"):
        orchestrator.on(Events.STARTED, rank=0)(guarded)
    assert not (tmp_path / "bad").exists()


def test_an_engine_that_does_not_exist_is_named_with_those_that_do(tmp_path: Path) -> None:
    orchestrator = make(programs.linear, tmp_path)
    orchestrator.on(Events.COMPLETED, engine="evaluater")(print)
    with pytest.raises(SpecError, match=r"^orchestrator.on\(engine='evaluater'\): expected an engine of the program"):
        orchestrator.run(max_epochs=1)


def test_a_best_metric_that_does_not_exist_is_named_after_the_first_save(tmp_path: Path) -> None:
    orchestrator = make(programs.counts_tokens, tmp_path)
    orchestrator.attach(Checkpoint(best=Best("summ")))
    with pytest.raises(SpecError, match=r"checkpoint.best.metric: .* received 'summ'; did you mean 'sum'\?"):
        orchestrator.run(max_epochs=1)
    assert "CHECKPOINT_COMMITTED" in [line["event"] for line in journal_of(tmp_path)]


def test_more_workers_than_the_cluster_can_hold_are_refused_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(CapacityError) as caught:
        Orchestrator(programs.linear, workers={"count": 3, "cpus": 4}, storage=tmp_path).run(max_epochs=1)
    assert str(caught.value) == (
        "cluster: expected room for 3 workers of 4 CPU each, placed PACK, received a cluster of 1 node with 8 CPU in "
        "all; ask for fewer workers or add nodes"
    )
    assert time.monotonic() - began < 30  # far below the start timeout: it did not wait for room


def test_gpus_that_nobody_has_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(CapacityError, match=r"room for 1 workers of 1 CPU, 1 GPU each.* with 8 CPU, 0 GPU in all"):
        Orchestrator(programs.linear, workers={"count": 1, "gpus": 1}, storage=tmp_path).run(max_epochs=1)


def test_a_global_batch_smaller_than_the_world_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"^ranks 0-1 raised ProgramError: worker\.loader: global_batch_size: expected"
    ):
        make(programs.linear, tmp_path, batch=1).run(max_epochs=1)


def test_ranks_at_different_gates_are_named_instead_of_hanging(tmp_path: Path) -> None:
    orchestrator = make(programs.goes_astray, tmp_path)
    for event in (programs.Odd.HERE, programs.Odd.THERE):
        orchestrator.on(event, blocking=True)(print)
    with pytest.raises(GateMismatchError) as caught:
        orchestrator.run(max_epochs=1)
    assert str(caught.value).startswith(
        "gate: expected all ranks at the same event, received rank 0 at trainer here #1, rank 1 at trainer there #1"
    )
    assert ranks_are_gone(tmp_path)


def test_a_killed_rank_ends_the_run_with_rank_pid_and_node(tmp_path: Path) -> None:
    orchestrator = make(programs.kills_itself, tmp_path, recovery={"on_loss": "stop"})
    with pytest.raises(WorkerLostError) as caught:
        orchestrator.run(max_epochs=1)
    journal = journal_of(tmp_path)
    joined = {line["rank"]: line for line in journal if line["event"] == "WORKER_JOINED"}
    lost = next(line for line in journal if line["event"] == "WORKER_LOST")
    assert re.match(rf"rank 1 \(pid {joined[1]['pid']} on node {joined[1]['node'][:12]} ", str(caught.value))
    assert (lost["rank"], lost["pid"], lost["node"]) == (1, joined[1]["pid"], joined[1]["node"])
    assert caught.value.exit_code == 3
    assert ranks_are_gone(tmp_path)


def test_a_rank_killed_while_a_handler_evaluates_ends_the_run_too(tmp_path: Path) -> None:
    orchestrator = make(programs.linear, tmp_path, recovery={"on_loss": "stop"})

    @orchestrator.on(Events.EPOCH_COMPLETED)
    def kill_and_evaluate(run: Orchestrator) -> None:
        os.kill(run.call(pid_of, rank=1), signal.SIGKILL)
        with contextlib.suppress(WorkerLostError):  # a handler that swallows it does not keep the run alive
            run.evaluate("evaluator")

    with pytest.raises(WorkerLostError, match=r"^rank 1 \(pid"):
        orchestrator.run(max_epochs=2)
    assert ranks_are_gone(tmp_path)


def pid_of(worker: Any) -> int:
    return os.getpid()


def test_a_call_that_raises_on_a_rank_raises_where_it_was_called(tmp_path: Path) -> None:
    caught: list[str] = []
    orchestrator = make(programs.linear, tmp_path)

    @orchestrator.on(Events.EPOCH_COMPLETED)
    def ask(run: Orchestrator) -> None:
        try:
            run.call(refuse, rank=1)
        except TrainingError as error:
            caught.append(str(error))

    assert orchestrator.run(max_epochs=1).status == "completed"
    where = f"test_bad_input.py:{refuse.__code__.co_firstlineno + 1}"
    assert caught == [f"orchestrator.call: rank 1 raised RuntimeError: not today ({where})"]


def refuse(worker: Any) -> None:
    raise RuntimeError("not today")


def test_a_late_handler_that_needs_a_new_gate_is_refused(tmp_path: Path) -> None:
    refused: list[Callable[..., Any]] = []
    orchestrator = make(programs.linear, tmp_path)

    @orchestrator.on(Events.EPOCH_COMPLETED)
    def register_late(run: Orchestrator) -> None:
        with pytest.raises(SpecError, match="register it before run"):
            run.on(Events.EPOCH_STARTED)(print)
        refused.append(register_late)

    orchestrator.run(max_epochs=1)
    assert refused
