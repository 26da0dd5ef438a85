"""The restricted reader of checkpoint metadata: reads what torch writes, refuses everything else."""

import os
import pickle
import pickletools

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
)
from torch.distributed.checkpoint.state_dict_saver import save

from workers.metadata import MetadataError, read_metadata

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # torch's own save()


@pytest.fixture
def read(tmp_path):
    def read(content):
        path = tmp_path / ".metadata"
        path.write_bytes(content)
        return read_metadata(path)

    return read


def saved(folder):
    tensors = {
        "conv": torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "half": torch.zeros(3, dtype=torch.bfloat16),
        "bool": torch.zeros(3, dtype=torch.bool),
        "step": 3,
    }
    save(tensors, storage_writer=FileSystemWriter(folder), no_dist=True)
    return (folder / ".metadata").read_bytes()


def test_what_torch_writes_is_read(tmp_path):
    content = saved(tmp_path)
    assert read_metadata(tmp_path / ".metadata") == pickle.loads(content)


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "posix.system"), (eval, "builtins.eval"), (torch.load, "torch.serialization.load")],
)
def test_a_call_of_anything_else_is_refused(read, tmp_path, function, name):
    with pytest.raises(MetadataError) as error:
        read(pickle.dumps(Evil(function, ("echo > /dev/null",))))
    text = f"refused to build {name}: it has no place in checkpoint metadata"
    assert str(error.value) == f"{tmp_path / '.metadata'}: {text}"


@pytest.mark.parametrize("name", ["torch.serialization.load", "torch.distributed", "torch.nn.Module"])
def test_a_name_below_an_allowed_one_is_refused(read, name):
    module, _, attribute = name.partition(".")
    with pytest.raises(MetadataError, match=f"refused to build {name}: "):
        read(b"\x80\x04" + pickled_text(module) + pickled_text(attribute) + pickle.STACK_GLOBAL + b".")


def pickled_text(text):
    return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode()


def built(target, state):
    """A pickle that makes `target` and then sets its attributes with BUILD."""
    body = pickle.dumps(target, protocol=2)[2:-1] + pickle.dumps(state, protocol=2)[2:-1]
    content = b"\x80\x02" + body + pickle.BUILD + b"."
    assert "BUILD" in [opcode.name for opcode, _, _ in pickletools.genops(content)]
    return content


@pytest.mark.parametrize(
    "target", [MetadataIndex, torch.serialization._get_layout, _MEM_FORMAT_ENCODING.TORCH_CHANNELS_LAST, torch.float32]
)
@pytest.mark.parametrize("state", [{"evil": 1}, (None, {"evil": 1})])
def test_nothing_that_was_there_before_can_be_changed(read, target, state):
    with pytest.raises(MetadataError, match=r"refused to (change|build)"):
        read(built(target, state))
    assert not hasattr(target, "evil")


def with_file(name):
    info = torch.distributed.checkpoint.filesystem._StorageInfo(name, 0, 1)
    return pickle.dumps(Metadata({}, storage_data={MetadataIndex("x"): info}))


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/b", "..", ".", ""])
def test_a_file_outside_the_folder_is_refused(read, name):
    with pytest.raises(MetadataError, match=r"a tensor is said to lie in .*, outside the folder$"):
        read(with_file(name))


def test_a_file_inside_the_folder_is_accepted(read):
    assert read(with_file("__0_0.distcp")).storage_data


@pytest.mark.parametrize("end", [0, 1, 20, -1])
def test_a_damaged_file_is_refused(read, tmp_path, end):
    with pytest.raises(MetadataError, match=r"\.metadata: damaged: (EOFError|UnpicklingError|IndexError)"):
        read(saved(tmp_path)[:end])


@pytest.mark.parametrize("value", [{}, StorageMeta(), TensorProperties()])
def test_another_object_is_refused(read, value):
    with pytest.raises(MetadataError, match=f": expected checkpoint metadata, received {type(value).__name__}$"):
        read(pickle.dumps(value))


def test_a_persistent_id_is_refused(read):
    with pytest.raises(MetadataError, match="refused the persistent id 'file'"):
        read(b"\x80\x04" + pickled_text("file") + pickle.BINPERSID + b".")
