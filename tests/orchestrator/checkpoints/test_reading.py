"""What is read of a checkpoint is given out only when all of it is as it was written."""

from pathlib import Path

import pytest
import torch

from orchestrator import Checkpoint, CheckpointError
from orchestrator.checkpoints.reading import read_verified
from orchestrator.checkpoints.registry import Committed
from tests.orchestrator.linear import make
from workers.folder import Folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Committed:
    orchestrator = make(tmp_path)
    orchestrator.attach(Checkpoint())
    orchestrator.run(max_epochs=1)
    return orchestrator.registry.committed()[-1]


def test_entries_are_read_as_their_owners_want_them(checkpoint: Committed) -> None:
    state = read_verified(checkpoint, {"model"}.__contains__)
    assert {name: tuple(tensor.shape) for name, tensor in state["model"].items()} == {"weight": (1, 3), "bias": (1,)}
    assert set(read_verified(checkpoint)) == {"model", "optimizer"}


@pytest.mark.parametrize("name", ["data/__0_0.distcp", "index.json", "shared.pt", "ranks/rank-0000.pt"])
def test_one_wrong_byte_anywhere_is_an_error_that_names_the_file(checkpoint: Committed, name: str) -> None:
    assert isinstance(checkpoint.storage, Folder)
    file = checkpoint.storage.root / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} is not what was written: its sha256 differs; restore it"):
        read_verified(checkpoint, {"model"}.__contains__)


def test_what_verifies_and_still_can_not_be_read_is_an_error_too(
    checkpoint: Committed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> object:
        raise OSError("the network is gone")

    monkeypatch.setattr("orchestrator.checkpoints.reading.load_hashed", fail)
    with pytest.raises(CheckpointError, match="can't be read: the network is gone"):
        read_verified(checkpoint)


def test_torch_loads_the_tensors_without_us(checkpoint: Committed) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.format_utils import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    state: dict[str, torch.Tensor] = {}
    assert isinstance(checkpoint.storage, Folder)
    reader = FileSystemReader(checkpoint.storage.root / "data")
    _load_state_dict(state, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    assert torch.equal(state["model.weight"], read_verified(checkpoint)["model"]["weight"])
