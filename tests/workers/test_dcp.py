"""torch's checkpoint format on our storage: standard for torch's tools, and safe to read whatever is in it."""

import contextlib
import errno
import io
import json
import os
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader
from torch.distributed.checkpoint.state_dict_loader import load

from orchestrator.checkpoints.plan import GlobalPlan
from tests.checkpoints import written
from workers.dcp import METADATA, _Files, _Hashed, read_tensors, write_file, write_tensors
from workers.folder import Folder
from workers.index import INDEX, from_json
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


# ---------------------------------------------------------------- reading
def test_tensors_are_read_as_they_were_written(storage):
    save(storage)
    tensors = read_tensors(storage)
    assert sorted(tensors) == ["model.b", "model.w"]
    assert torch.equal(tensors["model.w"], STATE["model"]["w"])
    assert torch.equal(tensors["model.b"], STATE["model"]["b"])
    assert tensors["model.b"].dtype is torch.bfloat16


def test_only_what_is_asked_for_is_read(saved):
    assert list(read_tensors(saved, "model.w".__eq__)) == ["model.w"]
    saved.remove("data/__0_0.distcp")
    assert read_tensors(saved, lambda name: False) == {}


def test_the_index_is_plain_numbers_and_names(saved):
    index = json.loads(saved.read(INDEX))
    assert index["version"] == 1
    (part,) = index["tensors"]["model.w"]["parts"]
    assert (part["file"], part["offsets"], part["sizes"]) == ("__0_0.distcp", [0, 0], [2, 3])
    assert {name: (one["dtype"], one["size"]) for name, one in index["tensors"].items()} == {
        "model.w": ("float32", [2, 3]),
        "model.b": ("bfloat16", [4]),
    }


def test_the_pickle_of_torch_is_never_read(saved):
    class Trap:
        def __reduce__(self):
            return os.abort, ()

    saved.replace(METADATA, pickle.dumps(Trap()))
    assert torch.equal(read_tensors(saved)["model.w"], STATE["model"]["w"])


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


# ---------------------------------------------------------------- an index that can't be trusted
def spoil(storage, change):
    index = json.loads(storage.read(INDEX))
    change(index)
    storage.replace(INDEX, json.dumps(index).encode())


def set_part(**changes):
    return lambda index: index["tensors"]["model.w"]["parts"][0].update(changes)


def set_tensor(**changes):
    return lambda index: index["tensors"]["model.w"].update(changes)


def twice(index):
    """Half of a tensor, two times."""
    parts = index["tensors"]["model.w"]["parts"]
    parts[:] = [{**parts[0], "sizes": [1, 3]}] * 2


def over_each_other(index):
    """As much as the whole tensor, but a number of it twice and another one not at all."""
    tensor = index["tensors"]["model.w"]
    part = tensor["parts"][0]
    tensor["parts"] = [
        {**part, "offsets": offsets, "sizes": sizes}
        for offsets, sizes in (([0, 0], [1, 3]), ([0, 1], [2, 1]), ([1, 2], [1, 1]))
    ]


def side_by_side(index):
    tensor = index["tensors"]["model.w"]
    part = tensor["parts"][0]
    tensor["parts"] = [
        {**part, "offsets": offsets, "sizes": sizes}
        for offsets, sizes in (([0, 0], [1, 3]), ([1, 0], [1, 2]), ([1, 2], [1, 1]))
    ]


DAMAGED = [
    (lambda index: index.update(version=2), r"^index\.json: version 2, this Rankfire reads 1$"),
    (lambda index: index.pop("version"), r"^index\.json: damaged: KeyError: 'version'$"),
    (lambda index: index.pop("tensors"), r"^index\.json: damaged: KeyError: 'tensors'$"),
    (lambda index: index.update(tensors=[1]), r"^index\.json: damaged: AttributeError: "),
    (set_tensor(dtype="float33"), r"^index\.json: model\.w: 'float33' is no dtype of torch 2"),
    (set_tensor(dtype="save"), r"^index\.json: model\.w: 'save' is no dtype of torch 2"),
    (set_tensor(dtype=None), r"^index\.json: damaged: TypeError: "),
    (set_tensor(size="big"), r"^index\.json: damaged: "),
    (set_tensor(size=[-1, 3]), r"^index\.json: damaged: "),
    (set_tensor(size=[10**9, 10**9]), r"^index\.json: model\.w: its parts are not the whole of a tensor of size"),
    (set_tensor(parts=7), r"^index\.json: damaged: TypeError: "),
    (
        set_part(file="../../../etc/passwd"),
        r"^index\.json: a tensor is said to lie in '\.\./\.\./\.\./etc/passwd', outside",
    ),
    (set_part(file="/etc/passwd"), r"^index\.json: a tensor is said to lie in '/etc/passwd', outside the folder$"),
    (set_part(file=".."), r"^index\.json: a tensor is said to lie in '\.\.', outside the folder$"),
    (set_part(file=""), r"^index\.json: a tensor is said to lie in '', outside the folder$"),
    (set_part(file=7), r"^index\.json: damaged: TypeError: "),
    (set_part(start="x"), r"^index\.json: damaged: "),
    (set_part(sizes=None), r"^index\.json: damaged: TypeError: "),
    (set_part(bytes=-1), r"^index\.json: damaged: TypeError: expected whole numbers, received \[-1\]"),
    (set_part(offsets=[0]), r"^index\.json: model\.w: its parts are not the whole of a tensor of size \[2, 3\]"),
    (set_part(offsets=[1, 1]), r"^index\.json: model\.w: its parts are not the whole"),
    (set_part(sizes=[1, 3]), r"^index\.json: model\.w: its parts are not the whole"),
    (set_part(bytes=3), r"^index\.json: model\.w: its parts are not the whole"),
    (twice, r"^index\.json: model\.w: its parts are not the whole"),
    (over_each_other, r"^index\.json: model\.w: its parts are not the whole"),
]


@pytest.mark.parametrize(("change", "told"), DAMAGED)
def test_an_index_that_can_not_be_right_is_refused_in_words(saved, change, told):
    spoil(saved, change)
    with pytest.raises(ValueError, match=told):
        read_tensors(saved)


def test_parts_that_lie_side_by_side_are_a_whole(saved):
    spoil(saved, side_by_side)
    assert len(from_json(saved.read(INDEX)).state_dict_metadata["model.w"].chunks) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_an_interrupt_while_tensors_are_read_is_no_damage(saved, monkeypatch, error):
    def stop(*_):
        raise error

    monkeypatch.setattr(_Files, "create_stream", stop)
    with pytest.raises(type(error)) as caught:
        read_tensors(saved)
    assert caught.value is error


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", pickle.dumps({"version": 1})])
def test_what_is_no_index_is_refused_in_words(saved, content):
    saved.replace(INDEX, content)
    with pytest.raises(ValueError, match=r"^index\.json: damaged: \w+"):
        read_tensors(saved)


@pytest.mark.parametrize(
    "change", [set_part(start=10**6), set_part(bytes=30), set_part(start=7), set_part(file="__1_0.distcp")]
)
def test_a_place_where_the_tensor_is_not_is_told_in_words(saved, change):
    spoil(saved, change)
    with pytest.raises(ValueError, match=r"^a tensor can't be read: \w+: "):
        read_tensors(saved)


def test_a_pickled_tensor_that_is_no_tensor_is_not_read(saved):
    class Trap:
        def __reduce__(self):
            return os.abort, ()

    buffer = io.BytesIO()
    torch.save(Trap(), buffer)
    saved.replace("data/trap.distcp", buffer.getvalue())
    spoil(saved, set_part(file="trap.distcp", start=0, bytes=len(buffer.getvalue())))
    with pytest.raises(ValueError, match=r"^a tensor can't be read: UnpicklingError: Weights only load failed"):
        read_tensors(saved)


def test_a_file_that_is_gone_is_told_as_that(saved):
    saved.remove("data/__0_0.distcp")
    with pytest.raises(FileNotFoundError):
        read_tensors(saved)


def test_a_checkpoint_without_an_index_is_told_as_that(saved):
    saved.remove(INDEX)
    with pytest.raises(FileNotFoundError):
        read_tensors(saved)


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
