"""A disk that really fills up: the old checkpoint stands, nothing half is left, and it goes on when there is room."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import Checkpoint, CheckpointError, Orchestrator
from orchestrator.checkpoints.registry import Registry
from orchestrator.errors import StartError, exit_code_of
from orchestrator.journal import read_journal
from workers import Engine, Events, Program, Worker
from workers.locations import storage_at
from workers.shards import load_state

SIDE = 1400  # a model of 8 MB: three of them fit on the disk, beside a filling


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 30 MB."""
    place = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=30m", "rankfire-test", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True) if os.geteuid() == 0 else None
    if mounted is None or mounted.returncode != 0:
        why = "not root" if mounted is None else mounted.stderr.strip()
        pytest.skip(f"a disk that fills up needs the right to mount one: {why}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def build(worker: Worker) -> Program:
    model = torch.nn.Linear(SIDE, SIDE, bias=False)

    def step(engine: Engine, batch: torch.Tensor) -> None:
        with torch.no_grad():
            model.weight += batch.sum()

    return Program(
        engines={"trainer": Engine(step)},
        data={"trainer": worker.loader(torch.arange(5.0), global_batch_size=1)},
        state={"model": model},
    )


class Filling:
    """Fills the disk as soon as the first checkpoint is there, up to some bytes; `empty` gives it back."""

    def __init__(self, disk: Path, room: int) -> None:
        self.file = disk / "filling"
        self.room = room
        self.filled = 0

    def attach(self, orchestrator: Any) -> None:
        """Nothing to listen to."""

    def committed(self, orchestrator: Any, checkpoint: object) -> None:
        if self.filled:
            return
        status = os.statvfs(self.file.parent)
        self.filled = status.f_bavail * status.f_frsize - self.room
        with self.file.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            file.write(bytes(self.filled))
            while self.room == 0:
                file.write(bytes(1024))

    def empty(self, *_: object) -> None:
        self.file.unlink(missing_ok=True)


def orchestrator_on(disk: Path, run: str, on_save_error: Any, filling: Filling | None = None) -> Orchestrator:
    made = Orchestrator(build, workers=0, run=run, storage=disk)
    made.attach(Checkpoint(every={"iterations": 1}, keep=1, on_save_error=on_save_error))
    if filling is not None:
        made.attach(filling)
    return made


def newest(disk: Path, run: str) -> tuple[int, list[str], float]:
    """The iteration of the newest checkpoint, what is in the folder, and the sum of the model in it."""
    registry = Registry(storage_at(disk / run / "checkpoints"))
    found, refused = registry.newest_valid()
    assert found is not None
    assert refused == []
    total = float(load_state(found.storage)["model"]["weight"].double().sum())
    return found.manifest.iteration, registry.storage.names(), total


def events(disk: Path, run: str) -> list[str]:
    return [line["event"] for line in read_journal(disk / run / "journal.jsonl")]


@pytest.fixture(scope="module")
def expected(disk: Path) -> float:
    """The sum of the model in the last checkpoint of a run to which nothing happened."""
    orchestrator_on(disk, "whole", "stop").run(max_epochs=1)
    iteration, names, total = newest(disk, "whole")
    assert (iteration, names) == (5, ["step-00000005"])
    storage_at(disk).remove("whole")
    return total


@pytest.fixture(params=[4 << 20, 0], ids=["4 MB left", "nothing left"])
def filling(request: pytest.FixtureRequest, disk: Path, expected: float) -> Iterator[Filling]:
    filling = Filling(disk, request.param)
    yield filling
    filling.empty()
    for name in storage_at(disk).names():
        storage_at(disk).remove(name)


def test_a_full_disk_stops_a_run_that_shall_stop(disk: Path, filling: Filling, expected: float) -> None:
    with pytest.raises(CheckpointError) as caught:
        orchestrator_on(disk, "r", "stop", filling).run(max_epochs=1)
    assert filling.filled > 0
    assert exit_code_of(caught.value) == 3
    text = str(caught.value)
    assert text.startswith(
        "checkpoint step-00000002.attempt-1: could not be written: rank 0: OSError: [Errno 28] No sp"
    )
    assert text.endswith("; the checkpoints before it stand")
    assert newest(disk, "r")[:2] == (1, ["step-00000001"])
    assert events(disk, "r")[-1] in ("RUN_FAILED", "CHECKPOINT_COMMITTED")  # a full disk may not take the word of it
    filling.empty()
    orchestrator_on(disk, "r", "stop").run(max_epochs=1)
    assert newest(disk, "r") == (5, ["step-00000005"], expected)
    assert events(disk, "r")[-1] == "RUN_COMPLETED"


def test_a_full_disk_does_not_stop_a_run_that_shall_go_on(
    disk: Path, filling: Filling, expected: float, capsys: pytest.CaptureFixture[str]
) -> None:
    orchestrator = orchestrator_on(disk, "r", "continue", filling)
    seen: list[tuple[int, list[str], float]] = []

    def give_back(run: Orchestrator) -> None:
        seen.append(newest(disk, "r"))
        filling.empty()

    orchestrator.on(Events.ITERATION_STARTED(once=5), blocking=True)(give_back)
    orchestrator.run(max_epochs=1)
    ((iteration, names, _),) = seen
    assert (iteration, [name for name in names if "attempt" not in name]) == (1, ["step-00000001"])
    assert newest(disk, "r") == (5, ["step-00000005"], expected)
    told = capsys.readouterr().err
    assert "No space left on device; the checkpoints before it stand; training goes on\n" in told
    found = events(disk, "r")
    assert found.count("CHECKPOINT_COMMITTED") == 2
    assert found.count("CHECKPOINT_FAILED") >= 2
    assert found[-1] == "RUN_COMPLETED"


@pytest.mark.parametrize("filling", [0], indirect=True)
def test_a_disk_that_is_full_at_the_start_is_told(disk: Path, filling: Filling) -> None:
    (disk / "r").mkdir()
    filling.committed(None, None)
    with pytest.raises(Exception, match=r"^storage: .*/r can't be written: No space left on device$") as caught:
        orchestrator_on(disk, "r", "continue").run(max_epochs=1)
    assert exit_code_of(caught.value) == 3  # type: ignore[arg-type]
    assert [path.name for path in disk.rglob("*.tmp")] == []
    filling.empty()
    orchestrator_on(disk, "r", "continue").run(max_epochs=1)
    assert newest(disk, "r")[0] == 5


def test_a_full_disk_of_rays_own_files_is_said_to_be_that_before_anything_starts(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filling = disk / "filling"
    with contextlib.suppress(OSError), filling.open("wb") as file:
        while True:
            file.write(bytes(1 << 20))
    monkeypatch.setenv("RAY_TMPDIR", str(disk / "ray"))
    with pytest.raises(StartError) as refused:
        Orchestrator(build, run="no-room", workers=2, storage=tmp_path).run(max_epochs=1)
    assert exit_code_of(refused.value) == 3
    assert str(refused.value) == (
        f"cluster: expected room for Ray's own files (logs and sockets) in {disk}/ray, received a full disk, with 0 kB "
        "free; free some, or let RAY_TMPDIR name a folder on another disk"
    )
    filling.unlink()
    assert list(disk.iterdir()) == []
