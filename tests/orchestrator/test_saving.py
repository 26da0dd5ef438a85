"""One save, as the driver leads it: all or nothing."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator.checkpoints.registry import Registry
from orchestrator.errors import CheckpointError, SpecError, TrainingError
from orchestrator.saving import manifest_of, save, states_of, versions
from tests.orchestrator.conftest import MakeRun
from tests.orchestrator.fake_group import FakeGroup, gate
from workers.messages import Answer
from workers.orders import PlanSave, WriteSave
from workers.parcels import Failure
from workers.shards import FrozenState
from workers.state import State


def saving_group(size: int = 2) -> FakeGroup:
    """Ranks that hold a tensor and write it as real ones do."""
    group = FakeGroup(size, [gate()])
    held = {rank: FrozenState({"model": {"w": torch.ones(3)}}, {"rank": rank}, rank) for rank in range(size)}
    group.scripts[PlanSave] = lambda worker, order: group.answer(worker, order, held[worker].plan())
    group.scripts[WriteSave] = lambda worker, order: group.answer(
        worker, order, held[worker].write(order.folder, order.plan)
    )
    return group


def save_at_gate(make_run: MakeRun, group: FakeGroup, folder: Path) -> Any:
    registry, made = Registry(folder / "checkpoints"), []
    state = State()
    state.iteration, state.epoch = 10, 1
    run = make_run(group, lambda: made.append(save(run.asking, registry, manifest_of("r", group.size, state, {}))))
    run.execute(None)
    return registry, made[0]


def left(folder: Path) -> list[str]:
    return [path.name for path in (folder / "checkpoints").iterdir()]


def test_a_save_commits_what_all_ranks_wrote(make_run: MakeRun, tmp_path: Path) -> None:
    registry, made = save_at_gate(make_run, saving_group(), tmp_path)
    assert registry.newest_valid() == (made, [])
    paths = [entry.path for entry in made.manifest.files]
    assert paths == ["data/.metadata", "data/__0_0.distcp", "ranks/rank-0000.pt", "ranks/rank-0001.pt"]


def test_a_rank_that_can_not_write_is_named_and_nothing_is_left(make_run: MakeRun, tmp_path: Path) -> None:
    group = saving_group()
    write = group.scripts[WriteSave]
    full = Failure(type_name="OSError", text="No space left on device", traceback="")
    group.scripts[WriteSave] = lambda worker, order: (
        group.send(Answer, worker, order=order.order, failure=full) if worker else write(worker, order)
    )
    with pytest.raises(CheckpointError) as caught:
        save_at_gate(make_run, group, tmp_path)
    assert str(caught.value) == (
        "checkpoint step-00000010.attempt-1: could not be written: rank 1: OSError: No space left on device"
    )
    assert left(tmp_path) == []


def test_a_fault_in_the_middle_leaves_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    group = saving_group()
    group.scripts[WriteSave] = lambda worker, order: group.fail(worker)
    with pytest.raises(TrainingError):
        save_at_gate(make_run, group, tmp_path)
    assert left(tmp_path) == []


def test_a_folder_that_vanishes_is_told_as_a_checkpoint_error(make_run: MakeRun, tmp_path: Path) -> None:
    group = saving_group(1)
    write = group.scripts[WriteSave]

    def write_and_lose(worker: int, order: WriteSave) -> None:
        write(worker, order)
        for path in sorted(Path(order.folder).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()

    group.scripts[WriteSave] = write_and_lose
    with pytest.raises(CheckpointError, match=r"checkpoint step-00000010.attempt-1: can't be written: .*No such file"):
        save_at_gate(make_run, group, tmp_path)
    assert left(tmp_path) == []


def test_a_manifest_tells_where_training_stood() -> None:
    state = SimpleNamespace(
        epoch=2, iteration=20, epoch_length=10, metrics={"loss": 0.5, "confusion": [[1, 2], [3, 4]], "best": 7}
    )
    manifest = manifest_of("digits", 4, state, {"handlers": {}})
    assert (manifest.run, manifest.epoch, manifest.iteration, manifest.world_size) == ("digits", 2, 20, 4)
    assert manifest.metrics == {"loss": 0.5, "best": 7}
    assert manifest.versions == versions()


def test_a_handler_whose_state_json_can_not_hold_is_named() -> None:
    stop = SimpleNamespace(state_dict=lambda: {"bad": 3})
    odd = SimpleNamespace(state_dict=lambda: {"bad": {1, 2}})
    assert states_of({"Stop": stop}) == {"Stop": {"bad": 3}}
    with pytest.raises(SpecError) as caught:
        states_of({"Stop": stop, "Odd": odd})
    assert str(caught.value) == (
        "orchestrator.checkpoint: state_dict() of handler Odd: expected numbers, texts, lists and dictionaries of "
        "them, which JSON can hold, received something else: Object of type set is not JSON serializable"
    )


def test_versions_are_told_of_what_takes_part() -> None:
    assert set(versions()) == {"python", "rankfire", "torch", "ray"}
    assert versions()["torch"].startswith(torch.__version__.split("+")[0])


def test_a_package_that_is_not_installed_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("orchestrator.saving.version", version)
    assert versions()["rankfire"] == "not installed"
