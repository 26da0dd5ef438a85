"""One training around its loop: where it resumes, what it tells of its end, and what it gives back."""

import errno
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Checkpoint, HandlerError, Orchestrator, RankfireError, RunInterrupted, SpecError, SystemFailure
from orchestrator.errors import WorkerLostError
from orchestrator.group import RayGroup
from orchestrator.journal import Journal
from orchestrator.local import LocalGroup
from orchestrator.saving import Saver
from orchestrator.spec_problems import make_spec
from tests.orchestrator.linear import build, journal, make
from workers import Events, Program, Worker
from workers.folder import Folder
from workers.storage import Storage


def lines(storage: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in journal(storage) if line["event"] == event]


def test_a_run_tells_who_runs_what_where(tmp_path: Path) -> None:
    make(tmp_path).run(max_epochs=1)
    (line,) = lines(tmp_path, "RUN_STARTED")
    assert (line["run"], line["world_size"], line["pid"], line["program"]) == ("linear", 1, os.getpid(), "build")
    assert set(line["versions"]) == {"python", "rankfire", "torch", "ray"}


@pytest.mark.parametrize(("reason", "status"), [(None, "completed"), ("enough", "terminated")])
def test_a_run_tells_why_it_ended(tmp_path: Path, reason: str | None, status: str) -> None:
    orchestrator = make(tmp_path)
    if reason is not None:
        orchestrator.on(Events.EPOCH_COMPLETED(once=1))(lambda run: run.terminate(reason))
    result = orchestrator.run(max_epochs=2)
    (line,) = lines(tmp_path, "RUN_COMPLETED")
    assert (result.status, result.reason) == (line["status"], line["reason"]) == (status, reason)


def test_a_terminated_run_goes_on_when_it_is_run_again(tmp_path: Path) -> None:
    for last in (1, 2, 3):
        orchestrator = make(tmp_path)
        orchestrator.attach(Checkpoint())
        orchestrator.on(Events.EPOCH_COMPLETED(once=last))(lambda run: run.terminate())
        assert orchestrator.run(max_epochs=5).state.epoch == last


def test_the_run_is_over_for_its_handlers_when_it_has_ended(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.run(max_epochs=1)
    with pytest.raises(
        SpecError, match=r"^orchestrator.call: expected a run in progress, received none; call it inside a handler$"
    ):
        orchestrator.call(print)


@pytest.mark.parametrize("event", [Events.STARTED, Events.COMPLETED])
def test_the_run_and_its_files_are_let_go_however_it_ends(tmp_path: Path, event: Events) -> None:
    orchestrator = make(tmp_path)
    orchestrator.on(event)(lambda run: [].pop())
    with pytest.raises(HandlerError, match="IndexError: pop from empty list"):
        orchestrator.run(max_epochs=1)
    opened = [path for path in map(os.path.realpath, Path("/proc/self/fd").iterdir()) if str(tmp_path) in path]
    assert opened == []
    assert make(tmp_path).run(max_epochs=1).status == "completed"


@pytest.mark.parametrize("error", [SystemFailure("no"), ZeroDivisionError("no"), KeyboardInterrupt()])
def test_workers_are_ended_though_the_last_save_can_not_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    ended: list[float] = []
    monkeypatch.setattr(LocalGroup, "stop", lambda group, *, grace: ended.append(grace) or [])

    def fail(saver: Saver, seconds: float) -> None:
        raise error

    monkeypatch.setattr(Saver, "salvage", fail)
    with pytest.raises((RankfireError, ZeroDivisionError)):
        make(tmp_path).run(max_epochs=1)
    assert len(ended) == 1


@pytest.mark.parametrize("verb", ["claim", "replace"])
def test_a_storage_that_refuses_at_the_start_is_told_and_the_run_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def refuse(storage: Folder, path: str, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    spec = make_spec({"run": "linear", "program": "m:b", "train": {"max_epochs": 1}, "workers": 0})
    with monkeypatch.context() as patch:
        patch.setattr(Folder, verb, refuse)
        orchestrator = Orchestrator.from_spec(spec.model_copy(update={"storage": str(tmp_path)}))
        with pytest.raises(SystemFailure) as caught:
            orchestrator.run()
    assert str(caught.value) == f"storage: {tmp_path}/linear can't be written: No space left on device"
    assert make(tmp_path).run(max_epochs=1).status == "completed"


def test_an_interrupt_in_a_driver_handler_is_an_interrupted_run(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)

    @orchestrator.on(Events.EPOCH_COMPLETED)
    def press() -> None:
        raise KeyboardInterrupt

    with pytest.raises(RunInterrupted, match=r"^run 'linear' was interrupted at once; nothing was saved$"):
        orchestrator.run(max_epochs=1)
    assert [line["event"] for line in journal(tmp_path)][-1] == "RUN_INTERRUPTED"
    assert lines(tmp_path, "RUN_FAILED") == []


def test_a_handler_that_exits_is_a_handler_that_raised(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.on(Events.EPOCH_COMPLETED)(lambda run: sys.exit(0))
    with pytest.raises(HandlerError, match=r"^driver handler <lambda> .* at EPOCH_COMPLETED #1 raised SystemExit: 0$"):
        orchestrator.run(max_epochs=1)
    assert lines(tmp_path, "RUN_FAILED")[0]["error"] == "HandlerError"


def test_a_handler_of_exceptions_that_exits_does_not_hide_what_it_was_told_of(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.on(Events.EXCEPTION_RAISED)(lambda run, error: sys.exit(0))
    orchestrator.on(Events.EPOCH_COMPLETED)(lambda run: [].pop())
    with pytest.raises(HandlerError, match="IndexError"):
        orchestrator.run(max_epochs=1)


def test_an_interrupted_run_says_from_where_the_same_command_goes_on(tmp_path: Path) -> None:
    for saves, text in (
        (False, "after iteration [12]; nothing was saved"),
        (
            True,
            "after iteration ([12]); saved as "
            r"step-0000000\1; the same command goes on from there",
        ),
    ):
        orchestrator = make(tmp_path)
        if saves:
            orchestrator.attach(Checkpoint())
        orchestrator.on(Events.ITERATION_COMPLETED(once=1), rank=0)(lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(RunInterrupted, match=f"^run 'linear' was interrupted {text}$"):
            orchestrator.run(max_epochs=3)


def test_an_interrupt_while_the_ranks_start_leaves_at_once(tmp_path: Path) -> None:
    def press_and_build(worker: Worker) -> Program:
        os.kill(os.getpid(), signal.SIGTERM)
        return build(worker)

    orchestrator = Orchestrator(press_and_build, workers=0, run="linear", storage=tmp_path)
    with pytest.raises(RunInterrupted, match=r"^run 'linear' was interrupted before it trained; nothing was saved$"):
        orchestrator.run(max_epochs=3)
    assert journal(tmp_path)[-1]["event"] == "RUN_INTERRUPTED"


def test_interrupts_while_the_workers_are_ended_do_not_disturb_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[list[str]] = []
    stop = LocalGroup.stop

    def pressed(group: LocalGroup, *, grace: float) -> list[str]:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        ended.append(stop(group, grace=grace))
        return ended[-1]

    monkeypatch.setattr(LocalGroup, "stop", pressed)
    assert make(tmp_path).run(max_epochs=1).status == "completed"
    assert ended == [[]]


def test_a_run_that_is_done_says_what_is_done_and_how_it_would_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in ({"max_epochs": 2}, {"max_epochs": 2}, {"max_iters": 5}):
        orchestrator = make(tmp_path)
        orchestrator.attach(Checkpoint())
        orchestrator.run(**given)
    assert [line for line in capsys.readouterr().err.splitlines() if "already" in line] == [
        f"rankfire: run 'linear' is already done: {done}, or take another run id"
        for done in ("2 of 2 epochs; raise train.max_epochs", "6 of 5 iterations; raise train.max_iters")
    ]


def test_what_an_interrupted_save_left_is_swept_away(tmp_path: Path) -> None:
    left = tmp_path / "linear" / "checkpoints" / "step-00000003.attempt-1"
    left.mkdir(parents=True)
    assert make(tmp_path).run(max_epochs=1).checkpoint is None
    assert not left.exists()


def test_processes_that_can_not_be_ended_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = LocalGroup.stop
    monkeypatch.setattr(LocalGroup, "stop", lambda group, *, grace: [*stop(group, grace=grace), "pid 7 on node n (h)"])
    make(tmp_path).run(max_epochs=1)
    assert capsys.readouterr().err.endswith("rankfire: could not be ended: pid 7 on node n (h)\n")
    assert lines(tmp_path, "LEFT_BEHIND")[0]["processes"] == ["pid 7 on node n (h)"]


def test_workers_are_ended_gently_after_a_good_end_and_at_once_after_a_bad_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graces: list[float] = []
    stop = LocalGroup.stop
    monkeypatch.setattr(LocalGroup, "stop", lambda group, *, grace: (graces.append(grace), stop(group, grace=grace))[1])
    make(tmp_path, "good").run(max_epochs=1)
    with pytest.raises(Exception, match="wrong shape"):
        make(tmp_path, "bad", config={"fail": "step"}).run(max_epochs=2)
    assert graces == [2.0, 0.0]


def test_with_workers_the_ranks_are_those_of_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, tuple[str, ...]]] = []

    def start(group: RayGroup) -> None:
        asked.append((group._workers.count, group.size, group._roots))
        raise SpecError("not in this test")

    monkeypatch.setattr(RayGroup, "start", start)
    monkeypatch.setattr(RayGroup, "stop", lambda group, *, grace: [])
    orchestrator = Orchestrator("m:build", workers=3, spares=1, run="linear", storage=tmp_path)
    with pytest.raises(SpecError, match="not in this test"):
        orchestrator.run(max_epochs=1)
    assert asked == [(3, 4, orchestrator.settings.roots)]


@pytest.mark.parametrize("where", ["training._begin_at", "training._make_run", "parts.Registry.sweep"])
@pytest.mark.parametrize("error", [SystemFailure("no"), ZeroDivisionError("no"), KeyboardInterrupt()])
def test_what_ends_a_run_before_it_has_begun_is_in_its_record_and_lets_it_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(f"orchestrator.{where}", fail)
        with pytest.raises(type(error)):
            make(tmp_path).run(max_epochs=1)
    ends = [(line["event"], line.get("error")) for line in journal(tmp_path) if line["event"].startswith("RUN_")]
    interrupted = isinstance(error, KeyboardInterrupt)
    assert ends == [("RUN_INTERRUPTED", None) if interrupted else ("RUN_FAILED", type(error).__name__)]
    assert make(tmp_path).run(max_epochs=1).status == "completed"


@pytest.mark.parametrize("error", [ZeroDivisionError("no"), KeyboardInterrupt()])
def test_a_run_is_let_go_whatever_happens_while_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "start", fail)
        with pytest.raises(type(error)):
            make(tmp_path).run(max_epochs=1)
    assert make(tmp_path).run(max_epochs=1).status == "completed"


class Hook:
    """A handler object with a hook beside its events that raises."""

    def __init__(self, name: str, error: BaseException) -> None:
        self.error = error
        setattr(self, name, self.fail)

    def attach(self, orchestrator: Orchestrator) -> None:
        orchestrator.on(Events.EPOCH_COMPLETED(once=1))(self.begin)

    def begin(self, run: Orchestrator) -> None:
        run.checkpoint()
        if hasattr(self, "boundary"):
            run.at_boundary(self.boundary)

    def fail(self, *_: object) -> None:
        raise self.error


@pytest.mark.parametrize("error", [IndexError("pop"), SystemExit(3)])
@pytest.mark.parametrize(
    ("name", "when"),
    [("committed", "the commit of step-00000003"), ("tick", "a look at the clock"), ("boundary", "a boundary")],
)
def test_a_hook_that_raises_is_a_handler_that_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, when: str, error: BaseException
) -> None:
    monkeypatch.setattr("orchestrator.local.TICK", -1.0)
    orchestrator = make(tmp_path)
    orchestrator.attach(Hook(name, error))
    with pytest.raises(HandlerError, match=rf"^driver handler fail \(.*\) at {when} raised {type(error).__name__}: "):
        orchestrator.run(max_epochs=3)
    assert [line["error"] for line in lines(tmp_path, "RUN_FAILED")] == ["HandlerError"]


def test_what_is_still_in_flight_when_a_run_fails_is_removed_only_when_its_workers_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for kind, name in ((Saver, "salvage"), (LocalGroup, "stop"), (Saver, "abandon")):
        real = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda *a, n=name, r=real, **k: (order.append(n), r(*a, **k))[1])
    make(tmp_path).run(max_epochs=1)
    assert order == ["salvage", "stop", "abandon"]


def test_what_a_driver_left_that_died_while_it_wrote_the_job_file_is_removed(tmp_path: Path) -> None:
    make(tmp_path).run(max_epochs=1)
    left = tmp_path / "linear" / ".spec.yaml.0123abcd.tmp"
    left.touch()
    make(tmp_path).run(max_epochs=2)
    assert not left.exists()


def test_a_state_that_the_program_has_no_more_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make(tmp_path)
    first.attach(Checkpoint())
    first.run(max_epochs=1)

    def without_optimizer(worker: Worker) -> Program:
        program = build(worker)
        del program.state["optimizer"]
        return program

    for epochs, times in ((2, 1), (3, 0)):
        again = Orchestrator(without_optimizer, workers=0, run="linear", storage=tmp_path)
        again.attach(Checkpoint())
        capsys.readouterr()
        assert again.run(max_epochs=epochs).status == "completed"
        told = [line for line in capsys.readouterr().err.splitlines() if "dropped" in line]
        assert told == times * [
            "rankfire: run 'linear' goes on from checkpoint step-00000003, epoch 1; its state 'optimizer' is dropped, "
            "since the program has none of that name"
        ]
    assert len(lines(tmp_path, "STATE_DROPPED")) == 1


@pytest.mark.parametrize("storage", ["memory"], indirect=True)
def test_a_run_in_memory_tells_once_that_nothing_will_be_left(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(storage.url).run(max_epochs=2).status == "completed"
    told = "rankfire: run 'linear' is in the memory of this process: nothing of it will be left when that ends"
    assert capsys.readouterr().err.splitlines().count(told) == 1


def test_a_lost_rank_is_told_with_where_the_same_command_goes_on(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)

    @orchestrator.on(Events.EPOCH_COMPLETED(once=2))
    def lose(run: Orchestrator) -> None:
        run.checkpoint(wait=True)
        raise WorkerLostError("rank 1 was lost")

    with pytest.raises(WorkerLostError) as caught:
        orchestrator.run(max_epochs=3)
    told = "rank 1 was lost; saved as step-00000006; the same command goes on from there"
    assert (str(caught.value), lines(tmp_path, "RUN_FAILED")[0]["text"]) == (told, told)
