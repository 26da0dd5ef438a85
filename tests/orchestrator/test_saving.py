"""Saves, as the driver leads them: the ranks go on while they write, and it is all or nothing."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoints.draft import manifest_of
from orchestrator.checkpoints.registry import Committed, Registry
from orchestrator.errors import CheckpointError, FencedError, HandlerError, TrainingError
from orchestrator.run import Run
from tests.orchestrator.conftest import MakeRun
from tests.orchestrator.fake_group import FakeGroup, gate
from workers import failpoints
from workers.messages import Pulse
from workers.orders import FreezeSave, PlanSave, Release
from workers.parcels import Failure, Writing
from workers.state import State

FULL = Failure(type_name="OSError", text="No space left on device", traceback="")


class Saves:
    """A run of ranks at a few gates, at each of which a save begins; what the saver told."""

    def __init__(self, make_run: MakeRun, group: FakeGroup, *, on_error: Any = "stop") -> None:
        self.urls: list[str | None] = []
        self.committed: list[Committed] = []
        self.failed: list[str] = []
        self.at_gate: Callable[[], None] = lambda: None
        self.state = State()
        self.run: Run = make_run(group, self._save)
        self.saver = self.run.saver
        self.saver.on_error = on_error
        self.saver.committed = self.committed.append
        self.saver.failed = lambda error: self.failed.append(str(error))

    @property
    def registry(self) -> Registry:
        return self.saver._registry

    def execute(self) -> "Saves":
        self.run.execute(None)
        return self

    def left(self) -> list[str]:
        return self.registry.storage.names()

    def _save(self) -> None:
        self.state.iteration += 10
        self.urls.append(self.saver.begin(manifest_of("r", 2, self.state, {})))
        self.at_gate()


def gates(count: int) -> list[Any]:
    return [gate(count=number + 1) for number in range(count)]


# ---------------------------------------------------------------- a save
def test_a_save_commits_what_all_ranks_wrote(make_run: MakeRun) -> None:
    saves = Saves(make_run, FakeGroup(2, gates(1))).execute()
    (made,) = saves.committed
    assert saves.urls == [made.url] == [saves.registry.storage.locate("step-00000010")]
    assert [entry.path for entry in made.manifest.files] == [
        "data/.metadata", "data/__0_0.distcp", "data/__1_0.distcp", "index.json",
        "ranks/rank-0000.pt", "ranks/rank-0001.pt", "shared.pt",
    ]  # fmt: skip
    newest, refused = saves.registry.newest_valid()
    assert newest is not None
    assert (newest.name, newest.manifest, refused) == (made.name, made.manifest, [])


def test_what_only_ranks_know_is_in_the_manifest(make_run: MakeRun) -> None:
    (made,) = Saves(make_run, FakeGroup(2, gates(1))).execute().committed
    manifest = made.manifest
    assert (manifest.cursor, manifest.data, manifest.state) == (
        {"seed": 1, "position": 40},
        {"length": 100},
        {"model": 20},
    )
    assert (manifest.iteration, manifest.world_size) == (10, 2)


def test_what_is_not_set_alike_on_all_ranks_is_told_once(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    group, told = FakeGroup(2, gates(3)), []
    group.shares[1].lr = 0.05
    saves = Saves(make_run, group)
    saves.saver.differing = told.append
    saves.execute()
    assert told == ["state 'adam': lr is 0.1 on rank 0, 0.05 on rank 1"]
    assert capsys.readouterr().err.count(f"ranks differ in what is set: {told[0]}; a checkpoint holds") == 1


def test_ranks_go_on_as_soon_as_all_have_copied(make_run: MakeRun) -> None:
    group = FakeGroup(2, gates(1))
    saves = Saves(make_run, group)
    seen: list[tuple[int, int]] = []
    save = group.save

    def note(*given: Any) -> None:
        seen.append((len(group.ordered(FreezeSave, 1)), len(group.ordered(Release, 0))))
        save(*given)

    group.save = note  # type: ignore[method-assign]
    saves.execute()
    assert seen[-1] == (1, 1)  # when the last one writes, all have copied and are released


def test_the_next_save_waits_for_the_one_before(make_run: MakeRun) -> None:
    group = FakeGroup(2, gates(3))
    late: list[Any] = []

    def hold_back(worker: int, order: FreezeSave) -> None:
        group.answer(worker, order, None)
        late.append(lambda: group.save(worker, order.url, group.shares[worker].written(order)))

    group.scripts[FreezeSave] = hold_back
    plan = group.scripts[PlanSave]

    def planned(worker: int, order: PlanSave) -> None:
        assert late == [], "a plan was asked for while the save before was in flight"
        plan(worker, order)

    group.scripts[PlanSave] = planned
    take = group.take

    def write_when_nothing_else_comes(timeout: float) -> Any:
        if not group.inbox and late:
            late.pop(0)()
        return take(timeout)

    group.take = write_when_nothing_else_comes  # type: ignore[method-assign]
    saves = Saves(make_run, group).execute()
    assert [made.manifest.iteration for made in saves.committed] == [10, 20, 30]


def test_a_run_ends_only_when_its_last_save_is_committed(make_run: MakeRun) -> None:
    saves = Saves(make_run, FakeGroup(2, gates(1)))
    saves.at_gate = lambda: saves.urls.append(str(len(saves.committed)))
    saves.execute()
    assert (saves.urls[1], len(saves.committed)) == ("0", 1)


def test_to_wait_is_to_have_it_committed_at_the_gate(make_run: MakeRun) -> None:
    saves = Saves(make_run, FakeGroup(2, gates(1)))
    counts: list[int] = []
    saves.at_gate = lambda: (saves.saver.wait(), counts.append(len(saves.committed)))[0]
    saves.execute()
    assert counts == [1]


# ---------------------------------------------------------------- a storage that does not answer
def hold_on(group: FakeGroup, worker: int) -> None:
    """This rank copies, begins to write, and never comes to an end; its pulses say so whenever nothing else comes."""
    take, freeze = group.take, group.scripts[FreezeSave]

    def never(to: int, order: FreezeSave) -> None:
        if to != worker or order.given_up:
            freeze(to, order)
        else:
            group.answer(to, order, None)

    def beat(timeout: float) -> Any:
        if not group.inbox:
            fields = {"iteration": 3, "epoch": 1, "moves": 0, "idle": 0.0, "busy": 0.0, "samples": 0, "drops": 0}
            writing = Writing(path="data/__1_0.distcp", bytes=12)
            group.send(Pulse, worker, phase="training", output={}, writing=writing, **fields)
        return take(timeout)

    group.scripts[FreezeSave], group.take = never, beat  # type: ignore[method-assign]


def test_a_save_that_does_not_come_on_is_given_up_with_rank_and_file(make_run: MakeRun) -> None:
    hold_on(group := FakeGroup(2, gates(1)), 1)
    saves = Saves(make_run, group)
    saves.saver._patience = 0.05
    with pytest.raises(CheckpointError, match=r"was given up: rank 1 has not come on .* with data/__1_0\.distcp"):
        saves.execute()
    assert (saves.committed, len(saves.failed)) == ([], 1)
    saves.saver.abandon()
    assert saves.left() == []


def test_the_next_save_tells_ranks_what_was_given_up(make_run: MakeRun) -> None:
    hold_on(group := FakeGroup(2, gates(2)), 1)
    saves = Saves(make_run, group, on_error="continue")

    def have_patience(error: CheckpointError) -> None:
        saves.failed.append(str(error))
        saves.saver._patience = 60.0

    saves.saver._patience, saves.saver.failed = 0.05, have_patience
    saves.execute()
    assert [made.manifest.iteration for made in saves.committed] == [20]
    assert len(saves.failed) == 1
    first, second = group.ordered(FreezeSave, 1)
    assert (first.given_up, second.given_up) == ((), (first.url,))


# ---------------------------------------------------------------- what goes wrong
def refuse_on(group: FakeGroup, *workers: int, failure: Failure = FULL) -> None:
    """These ranks copy, but can't write."""
    freeze = group.scripts[FreezeSave]

    def script(worker: int, order: FreezeSave) -> None:
        if worker not in workers:
            freeze(worker, order)
            return
        group.answer(worker, order, None)
        group.inbox.append(lambda: group.save(worker, order.url, failure=failure))

    group.scripts[FreezeSave] = script


@pytest.mark.parametrize(
    ("workers", "who"),
    [((1,), "rank 1"), ((0, 1, 2), "ranks 0-2")],
)
def test_ranks_that_can_not_write_are_named_once_and_nothing_is_left(
    make_run: MakeRun, workers: tuple[int, ...], who: str
) -> None:
    group = FakeGroup(3, gates(1))
    refuse_on(group, *workers)
    saves = Saves(make_run, group)
    with pytest.raises(CheckpointError) as caught:
        saves.execute()
    text = (
        f"checkpoint step-00000010.attempt-1: could not be written: {who}: OSError: No space left on device; "
        "the checkpoints before it stand"
    )
    assert (str(caught.value), saves.failed, saves.left()) == (text, [text], [])


def test_different_failures_are_told_each_with_its_ranks(make_run: MakeRun) -> None:
    group = FakeGroup(2, gates(1))
    refuse_on(group, 0)
    refuse_on(group, 1, failure=Failure(type_name="PermissionError", text="no", traceback=""))
    saves = Saves(make_run, group)
    with pytest.raises(CheckpointError, match=r": rank 0: OSError: No space.*; rank 1: PermissionError: no; the"):
        saves.execute()


def test_a_save_that_failed_is_told_and_training_goes_on_if_it_shall(make_run: MakeRun) -> None:
    group = FakeGroup(2, gates(3))
    saves = Saves(make_run, group, on_error="continue")
    freeze = group.scripts[FreezeSave]

    def second_fails(worker: int, order: FreezeSave) -> None:
        if "step-00000020" in order.url and worker == 1:
            group.answer(worker, order, None)
            group.inbox.append(lambda: group.save(worker, order.url, failure=FULL))
        else:
            freeze(worker, order)

    group.scripts[FreezeSave] = second_fails
    saves.execute()
    assert [made.manifest.iteration for made in saves.committed] == [10, 30]
    assert [text.partition(":")[0] for text in saves.failed] == ["checkpoint step-00000020.attempt-1"]
    assert saves.left() == ["step-00000010", "step-00000030"]


@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_a_storage_that_refuses_a_place_is_told_before_anything_is_copied(make_run: MakeRun, on_error: str) -> None:
    group = FakeGroup(2, gates(1))
    saves = Saves(make_run, group, on_error=on_error)
    Path(saves.registry.storage.url).write_text("in the way")
    if on_error == "stop":
        with pytest.raises(CheckpointError, match="can't be written: Not a directory"):
            saves.execute()
    else:
        assert saves.execute().urls == [None]
    assert (len(saves.failed), group.ordered(FreezeSave)) == (1, [])


def test_a_fault_of_a_rank_in_the_middle_of_a_save_leaves_nothing(make_run: MakeRun) -> None:
    group = FakeGroup(2, gates(1))
    group.scripts[FreezeSave] = lambda worker, order: group.fail(worker)
    saves = Saves(make_run, group)
    with pytest.raises(TrainingError):
        saves.execute()
    saves.saver.salvage(0.0)
    saves.saver.abandon()
    assert (saves.left(), saves.committed) == ([], [])


def test_a_folder_that_vanishes_is_told_as_a_checkpoint_error(make_run: MakeRun) -> None:
    group = FakeGroup(1, gates(1))
    saves = Saves(make_run, group)
    save = group.save

    def write_and_lose(worker: int, url: str, *given: Any) -> None:
        saves.registry.storage.remove("step-00000010.attempt-1")
        save(worker, url, *given)

    group.save = write_and_lose  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match="files and receipts differ"):
        saves.execute()
    assert saves.left() == []


@pytest.mark.parametrize("point", ["commit.received", "commit.indexed", "commit.manifest", "commit.done"])
def test_whatever_step_of_a_commit_the_disk_refuses_it_is_an_error_of_the_checkpoint(
    make_run: MakeRun, point: str
) -> None:
    saves = Saves(make_run, FakeGroup(2, gates(2)), on_error="continue")
    failpoints.arm(f"{point}=enospc:1")
    try:
        saves.execute()
    finally:
        failpoints.arm("")
    (told,) = saves.failed
    assert told.endswith("No space left on device")
    assert [made.manifest.iteration for made in saves.committed] == [20]
    newest, refused = saves.registry.newest_valid()
    assert newest is not None
    assert (newest.manifest.iteration, refused) == (20, [])
    assert not [name for name in saves.left() if "attempt" in name]


def test_a_checkpoint_that_has_its_name_is_one_though_the_disk_refuses_to_sync_it(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    saves = Saves(make_run, FakeGroup(2, gates(1)))
    failpoints.arm("commit.named=enospc:1")
    try:
        saves.execute()
    finally:
        failpoints.arm("")
    assert (saves.left(), [made.name for made in saves.committed]) == (["step-00000010"], ["step-00000010"])
    assert "step-00000010 is committed, but its name may not be on the disk" in caplog.text


def test_a_plan_that_can_not_be_made_leaves_no_place(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("a bug of ours")

    saves = Saves(make_run, FakeGroup(2, gates(1)))
    monkeypatch.setattr("orchestrator.checkpoints.plan.GlobalPlan.__init__", refuse)
    with pytest.raises(HandlerError, match="a bug of ours"):
        saves.execute()
    assert saves.left() == []


def test_a_listener_that_raises_ends_the_run_and_nobody_can_swallow_it(make_run: MakeRun) -> None:
    saves = Saves(make_run, FakeGroup(2, gates(1)), on_error="continue")

    def listen(checkpoint: Committed) -> None:
        raise HandlerError.in_handler("tell (x.py:1)", "the commit of step-00000010", "IndexError")

    saves.saver.committed = listen
    with pytest.raises(HandlerError):
        saves.execute()
    with pytest.raises(HandlerError):
        saves.run.loop.pump()


@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_what_a_listener_can_not_prune_is_an_error_of_a_save_but_not_of_this_checkpoint(
    make_run: MakeRun, on_error: str
) -> None:
    saves = Saves(make_run, FakeGroup(2, gates(2)), on_error=on_error)

    def refuse(checkpoint: Committed) -> None:
        saves.committed.append(checkpoint)
        raise CheckpointError.at("step-00000001", "can't be removed: Read-only file system")

    saves.saver.committed = refuse
    if on_error == "stop":
        with pytest.raises(CheckpointError, match="can't be removed"):
            saves.execute()
    else:
        saves.execute()
    assert len(saves.failed) == len(saves.committed) == (1 if on_error == "stop" else 2)
    assert [made.name for made in saves.registry.committed()] == [made.name for made in saves.committed]


@pytest.mark.parametrize("when", ["commit", "prune"])
def test_who_lost_the_run_commits_nothing_and_ends(make_run: MakeRun, when: str) -> None:
    saves = Saves(make_run, FakeGroup(2, gates(2)), on_error="continue")

    def fenced(*_: object) -> None:
        raise FencedError.by("r", "pid 8 on other")

    if when == "commit":
        saves.at_gate = lambda: setattr(saves.registry, "owned", fenced)
    else:
        saves.saver.committed = fenced
    with pytest.raises(FencedError, match="was taken over by pid 8 on other"):
        saves.execute()
    assert len(saves.registry.committed()) == (0 if when == "commit" else 1)
    assert saves.failed == []


def test_words_about_a_save_that_was_given_up_are_not_taken_for_another(make_run: MakeRun) -> None:
    group = FakeGroup(2, gates(1))
    saves = Saves(make_run, group)
    saves.at_gate = lambda: group.save(1, "elsewhere/step-00000003.attempt-1", failure=FULL)
    saves.execute()
    group.save(0, "elsewhere/step-00000003.attempt-1", failure=FULL)
    saves.run.loop.pump()
    assert (len(saves.committed), saves.failed) == (1, [])


# ---------------------------------------------------------------- a run that ends with an error
def ending(make_run: MakeRun, group: FakeGroup) -> Saves:
    """A run whose ranks have copied when one of them fails."""
    saves = Saves(make_run, group)
    saves.at_gate = lambda: group.inbox.appendleft(lambda: group.fail(0))
    with pytest.raises(TrainingError):
        saves.execute()
    assert saves.committed == []
    return saves


def test_what_is_in_flight_when_a_run_fails_is_still_committed(make_run: MakeRun) -> None:
    saves = ending(make_run, FakeGroup(2, gates(1)))
    saves.saver.salvage(10.0)
    assert [made.name for made in saves.committed] == ["step-00000010"]
    assert saves.left() == ["step-00000010"]


def test_what_is_not_written_in_time_when_a_run_fails_is_removed(make_run: MakeRun) -> None:
    group = FakeGroup(2, gates(1))
    saves = ending(make_run, group)
    saves.saver.salvage(0.0)
    assert saves.left() == ["step-00000010.attempt-1"]  # the workers are still alive, and may write
    saves.saver.abandon()
    assert saves.left() == []
    group.inbox.append(lambda: None)
    saves.saver.salvage(10.0)  # nothing is in flight
    assert saves.committed == []


def test_what_nobody_writes_any_more_when_a_run_fails_is_removed(make_run: MakeRun) -> None:
    group = FakeGroup(2, gates(1))
    group.scripts[FreezeSave] = lambda worker, order: group.answer(worker, order, None)
    saves = ending(make_run, group)
    saves.saver.salvage(10.0)
    saves.saver.abandon()
    assert (saves.left(), saves.committed) == ([], [])


def test_a_save_that_fails_while_a_run_is_failing_is_not_what_ends_it(make_run: MakeRun) -> None:
    group = FakeGroup(2, gates(1))
    refuse_on(group, 0, 1)
    saves = ending(make_run, group)
    saves.saver.salvage(10.0)
    assert (len(saves.failed), saves.left()) == (1, [])


def test_errno_of_the_system_is_what_is_told(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    saves = Saves(make_run, FakeGroup(1, gates(1)))

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("orchestrator.checkpoints.plan.GlobalPlan.write_index", refuse)
    with pytest.raises(
        CheckpointError, match=r"^checkpoint step-00000010.attempt-1: can't be written: Read-only file system$"
    ):
        saves.execute()
