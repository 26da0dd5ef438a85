"""Tensors are read safely whatever the files hold, each byte once, and what was read is what was hashed."""

import errno
import io
import json
import os
import pickle
from hashlib import sha256

import pytest
import torch

from tests.checkpoints import equal, written
from workers.dcp import METADATA
from workers.index import INDEX, from_json
from workers.locations import storage_at
from workers.parts import read_tensors
from workers.shards import Shards
from workers.streams import BLOCK, EDGE, Stream

STATE = {"model": {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, "step": 3}


@pytest.fixture
def saved(tmp_path):
    storage = storage_at(tmp_path / "saved")
    save(storage)
    return storage


def save(storage, state=STATE, ranks=2):
    written(storage, [Shards(state, {}, rank) for rank in range(ranks)], ["model"])


# ---------------------------------------------------------------- reading
def test_tensors_are_read_as_they_were_written(storage):
    save(storage)
    tensors, receipts = read_tensors(storage)
    assert receipts == []
    assert sorted(tensors) == ["model.b", "model.w"]
    assert torch.equal(tensors["model.w"], STATE["model"]["w"])
    assert torch.equal(tensors["model.b"], STATE["model"]["b"])
    assert tensors["model.b"].dtype is torch.bfloat16


def test_only_what_is_asked_for_is_read(saved):
    assert list(read_tensors(saved, "model.w".__eq__)[0]) == ["model.w"]
    saved.remove("data/__0_0.distcp")
    assert read_tensors(saved, lambda name: False) == ({}, [])


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
    assert torch.equal(read_tensors(saved)[0]["model.w"], STATE["model"]["w"])


# ---------------------------------------------------------------- large tensors
def numbers(bytes_):
    return torch.randint(256, (bytes_,), dtype=torch.uint8, generator=torch.Generator().manual_seed(bytes_))


SIZES = [*range(4 * EDGE - 2000, 4 * EDGE + 200, 200), BLOCK, 2 * BLOCK + 2 * EDGE - 1500, 3 * BLOCK + 7]
LARGE = {
    "model": {str(size): numbers(size) for size in SIZES} | {"turned": torch.randn(500, 300).t(), "few": numbers(5)}
}


def files_of(storage):
    return {path: storage.read(path) for path in storage.files() if path.endswith(".distcp")}


@pytest.mark.parametrize("hashed", [False, True])
def test_tensors_of_all_sizes_come_back(storage, hashed):
    save(storage, LARGE)
    tensors, _ = read_tensors(storage, hashed=hashed)
    assert len(tensors) == len(LARGE["model"])
    assert all(equal(tensors[f"model.{name}"], tensor) for name, tensor in LARGE["model"].items())


def test_a_tensor_brings_no_more_along_than_itself(saved):
    save(saved, LARGE)
    for tensor in read_tensors(saved)[0].values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("wanted", ["model.few", f"model.{SIZES[0]}", f"model.{SIZES[-1]}"])
def test_what_is_read_is_hashed_with_all_that_lies_beside_it(storage, wanted):
    save(storage, LARGE)
    tensors, receipts = read_tensors(storage, wanted.__eq__, hashed=True)
    assert list(tensors) == [wanted]
    (receipt,) = receipts
    content = files_of(storage)[receipt.path]
    assert (receipt.size, receipt.sha256) == (len(content), sha256(content).hexdigest())


def test_all_files_are_hashed_if_something_is_wanted_of_each(saved):
    save(saved, LARGE)
    receipts = read_tensors(saved, hashed=True)[1]
    assert {one.path: one.sha256 for one in receipts} == {
        path: sha256(content).hexdigest() for path, content in files_of(saved).items()
    }
    assert len(receipts) == 2


def test_no_changed_byte_gets_by(saved):
    save(saved, {"model": {"w": numbers(5 * EDGE)}}, ranks=1)
    path, content = "data/__0_0.distcp", saved.read("data/__0_0.distcp")
    (right,) = read_tensors(saved, hashed=True)[1]
    for place in [*range(0, len(content), 4999), EDGE - 1, EDGE, len(content) - EDGE, len(content) - 1]:
        saved.replace(path, content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            (receipt,) = read_tensors(saved, hashed=True)[1]
        except ValueError:
            continue
        assert receipt.sha256 != right.sha256


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize("left", [0, 100, EDGE, 4 * EDGE, 2 * BLOCK])
def test_a_file_that_ends_early_is_told_in_words(saved, left, hashed):
    save(saved, {"model": {"w": numbers(3 * BLOCK)}}, ranks=1)
    saved.replace("data/__0_0.distcp", saved.read("data/__0_0.distcp")[:left])
    with pytest.raises(ValueError, match=r"^a tensor can't be read: EOFError: the file ends before it does$"):
        read_tensors(saved, hashed=hashed)


def test_a_file_that_shrinks_while_it_is_read_is_told_in_words(saved, monkeypatch):
    save(saved, {"model": {"w": numbers(3 * BLOCK)}}, ranks=1)
    load = torch.load

    def shrink(*args, **kwargs):  # both ends were looked at by now
        os.truncate(saved.root / "data/__0_0.distcp", 2 * BLOCK)
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", shrink)
    with pytest.raises(ValueError, match=r"^a tensor can't be read: EOFError: the file ends before it does$"):
        read_tensors(saved, hashed=True)


def test_a_disk_that_fails_while_a_tensor_is_read_is_told_as_that(saved, monkeypatch):
    save(saved, {"model": {"w": numbers(3 * BLOCK)}}, ranks=1)

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Stream, "fill", fail)
    with pytest.raises(OSError, match="Input/output error"):
        read_tensors(saved, hashed=True)


# ---------------------------------------------------------------- tensors in parts
def in_parts(storage, pieces, whole, *, path="data/parts.distcp"):
    """Write a file of pieces by their offsets, and an index that says so."""
    content, told = b"", []
    for offsets, piece in pieces:
        buffer = io.BytesIO()
        torch.save(piece.contiguous(), buffer)
        place = {"file": path.removeprefix("data/"), "start": len(content), "bytes": len(buffer.getvalue())}
        told.append({"offsets": offsets, "sizes": list(piece.shape), **place})
        content += buffer.getvalue()
    with storage.create(path) as file:
        file.write(content)
    tensor = {"dtype": str(whole.dtype).removeprefix("torch."), "size": list(whole.shape), "parts": told}
    storage.replace(INDEX, json.dumps({"version": 1, "tensors": {"w": tensor}}).encode())


@pytest.mark.parametrize("scale", [1, 500])
def test_a_tensor_in_parts_is_put_together(storage, scale):
    whole = torch.arange(24.0 * scale * scale).reshape(4 * scale, 6 * scale)
    pieces = [
        ([0, 0], whole[:scale]),
        ([scale, 2 * scale], whole[scale:, 2 * scale :]),
        ([scale, 0], whole[scale:, : 2 * scale]),
    ]
    in_parts(storage, pieces, whole)
    tensors, (receipt,) = read_tensors(storage, hashed=True)
    assert torch.equal(tensors["w"], whole)
    assert receipt.sha256 == sha256(storage.read("data/parts.distcp")).hexdigest()


@pytest.mark.parametrize(
    ("piece", "told"),
    [
        (torch.ones(2, 2), r"expected torch\.float32 of size \[2, 3\], received .*torch\.Size\(\[2, 2\]\)"),
        (torch.ones(2, 3).double(), r"expected torch\.float32 of size \[2, 3\], received .*torch\.float64"),
        (torch.ones(2, 3).to_sparse(), r"expected torch\.float32 of size \[2, 3\], received .*torch\.sparse_coo"),
        ({"w": torch.ones(2, 3)}, "expected a tensor, received dict"),
    ],
)
def test_another_tensor_than_the_index_says_is_refused(saved, piece, told):
    buffer = io.BytesIO()
    torch.save(piece, buffer)
    saved.replace("data/other.distcp", buffer.getvalue())
    spoil(saved, set_part(file="other.distcp", start=0, bytes=len(buffer.getvalue())))
    with pytest.raises(ValueError, match=rf"^a tensor can't be read: TypeError: model\.w: {told}"):
        read_tensors(saved)


def test_tensors_that_lie_over_each_other_in_a_file_are_refused(saved):
    index = json.loads(saved.read(INDEX))
    index["tensors"]["model.b"] = index["tensors"]["model.w"]
    saved.replace(INDEX, json.dumps(index).encode())
    with pytest.raises(ValueError, match=r"^a tensor can't be read: ValueError: it begins at byte 0, in the middle of"):
        read_tensors(saved)


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
    def stop(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", stop)
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
