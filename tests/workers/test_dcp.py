"""torch's checkpoint format on our storage: standard for torch's tools, hashed while it is written."""

import contextlib
import errno
import io
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader
from torch.distributed.checkpoint.state_dict_loader import load

from orchestrator.checkpoints.plan import GlobalPlan
from tests.checkpoints import written
from workers.dcp import METADATA, _Files, _Hashed, write_file, write_tensors
from workers.folder import Folder
from workers.locations import storage_at
from workers.shards import Shards

STATE = {"model": {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, "step": 3}


def save(storage, ranks=2, spread=("model",)):
    return written(storage, [Shards(STATE, {}, rank) for rank in range(ranks)], spread)


@pytest.fixture
def saved(tmp_path):
    storage = storage_at(tmp_path / "saved")
    save(storage)
    return storage


# ---------------------------------------------------------------- torch's own tools
def empty():
    return {"model.w": torch.zeros(2, 3), "model.b": torch.zeros(4, dtype=torch.bfloat16)}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("ranks", [1, 2])
def test_torchs_tools_read_what_we_write(durable, ranks):
    save(durable, ranks)
    reader = (FileSystemReader if durable.moves else FsspecReader)(f"{durable.url}/data")
    tensors = empty()
    load(tensors, storage_reader=reader, no_dist=True)
    assert torch.equal(tensors["model.w"], STATE["model"]["w"])
    assert torch.equal(tensors["model.b"], STATE["model"]["b"])


# ---------------------------------------------------------------- writing
def test_a_file_is_hashed_while_it_is_written(storage):
    receipt = write_file(storage, "a/b", b"hello")
    assert (receipt.path, receipt.size) == ("a/b", 5)
    assert receipt.sha256 == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert storage.read("a/b") == b"hello"


def test_what_torch_writes_bit_by_bit_is_hashed_as_a_whole():
    inside = io.BytesIO()
    file = _Hashed(inside)
    file.write(b"hel")
    assert file.tell() == 3
    file.write(memoryview(b"lo"))
    file.flush()
    file.close()
    assert file.receipt("a/b").sha256 == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert inside.getvalue() == b"hello"


def test_a_file_that_can_be_written_can_not_be_read():
    hashed = _Hashed(io.BytesIO())
    assert (hashed.writable(), hashed.readable(), hashed.seekable()) == (True, False, False)


def test_progress_is_told_once_each(tmp_path):
    storage, told = storage_at(tmp_path), []
    shards = Shards({"a": torch.ones(5), "b": torch.ones(5)}, {}, 0)
    plan = GlobalPlan({0: shards.plan()})
    share = shards.freeze(plan.part(0), {})
    write_tensors(storage, share._plan, share._planner, told.append)
    assert told == ["opened", "half"]


@pytest.mark.parametrize("step", ["opened", "half"])
def test_a_disk_that_refuses_is_told_as_an_error_of_the_system(tmp_path, step):
    def refuse(at):
        if at == step:
            raise OSError(errno.ENOSPC, "No space left on device")

    shards = Shards({"a": torch.ones(5)}, {}, 0)
    plan = GlobalPlan({0: shards.plan()})
    share = shards.freeze(plan.part(0), {})
    with pytest.raises(OSError, match="No space left on device"):
        write_tensors(storage_at(tmp_path), share._plan, share._planner, refuse)


class Filling(Folder):
    """A disk that has room for so many bytes."""

    def __init__(self, root, room):
        super().__init__(root)
        self.room = room

    @contextlib.contextmanager
    def create(self, path):
        with super().create(path) as file:
            write, left = file.write, [self.room]

            def limited(block):
                left[0] -= memoryview(block).nbytes
                if left[0] < 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return write(block)

            yield SimpleNamespace(write=limited, flush=file.flush)


@pytest.mark.parametrize("room", [0, 100, 1000, 20_000, 40_000])
def test_a_disk_that_fills_up_is_told_as_that_though_torch_makes_another_error_of_it(tmp_path, room):
    shards = Shards({"a": torch.ones(5000), "b": torch.ones(5000)}, {}, 0)
    plan = GlobalPlan({0: shards.plan()})
    share = shards.freeze(plan.part(0), {})
    with pytest.raises(OSError, match="No space left on device"):
        write_tensors(Filling(tmp_path, room), share._plan, share._planner, lambda step: None)


def test_a_mistake_of_ours_while_writing_is_told_as_that(tmp_path):
    def mistake(step):
        if step == "half":
            raise ZeroDivisionError("ours")

    shards = Shards({"a": torch.ones(5)}, {}, 0)
    plan = GlobalPlan({0: shards.plan()})
    share = shards.freeze(plan.part(0), {})
    with pytest.raises((ZeroDivisionError, RuntimeError)):
        write_tensors(storage_at(tmp_path), share._plan, share._planner, mistake)


def test_torch_finds_the_file_system_that_it_wants(saved):
    files = _Files(saved)
    assert files.concat_path("data", ".metadata") == METADATA
    assert (files.init_path("data"), files.exists(METADATA), files.exists("data/no")) == ("data", True, False)
    assert files.validate_checkpoint_id("anything")
    files.mkdir("anything")
    files.rm_file(METADATA)
    assert not files.exists(METADATA)
    with pytest.raises(NotImplementedError, match="nothing is renamed here"):
        files.rename("a", "b")
