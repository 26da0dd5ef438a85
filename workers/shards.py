"""One rank's part of a checkpoint: tell what there is, freeze this rank's share, write it, load it again.

Tensors go through torch's distributed checkpoint format into `data/`, planned by the ranks and the driver together
without any process group. What else the shared state holds goes into `shared.pt`, which rank 0 writes; what belongs to
one rank alone into `ranks/rank-NNNN.pt`. Both hold only what `weights_only=True` reads. When all this becomes a
checkpoint is the driver's decision.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlan, WriteItem

from workers.dcp import read_tensors, write_file, write_tensors
from workers.errors import ProgramError
from workers.failpoints import failpoint
from workers.parcels import Receipt
from workers.storage import Storage

__all__ = ["SHARED", "Frozen", "Shards", "Written", "load_state", "rank_file", "read_rank_file", "read_structure"]

SHARED = "shared.pt"
_SCALARS = (bool, int, float, str, bytes)
_BITS = 2000  # of an integer: what is much larger, weights_only=True can't read
_VERSIONS, _STATE = "__versions__", "__state__"  # mark a state dict that knows the versions of its modules
_TENSOR = "__tensor__"  # marks, in the structure, where a tensor of data/ belongs


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What one rank wrote: receipts of its files, and torch's results for the index."""

    receipts: tuple[Receipt, ...]
    results: object


class Shards:
    """The state of a rank as it lives, split into tensors for `data/` and the rest.

    Args:
        shared: entries that are equal on all ranks: model, optimizer …
        own: what belongs to this rank alone: random numbers, engines.
        rank: this rank.

    Raises:
        ProgramError: the state holds something that is neither tensor nor plain value; says where.
    """

    def __init__(self, shared: Mapping[str, object], own: Mapping[str, object], rank: int) -> None:
        self.rank = rank
        self.tensors: dict[str, torch.Tensor] = {}
        self._structure = self._split(shared, "")
        self._own = _plain(own, "own", lambda tensor, _: _compact(tensor.detach()))
        self._planner = _Planner()

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of the tensors in each entry of the shared state."""
        tensors = self.tensors
        return {
            name: sum(tensors[found].numel() * tensors[found].element_size() for found in _tensors_in(entry))
            for name, entry in cast("dict[str, object]", self._structure).items()
        }

    def plan(self) -> SavePlan:
        """What this rank could write of `data/`; the driver decides who writes what."""
        self._planner.set_up_planner(cast(Any, self.tensors), None, self.rank == 0)
        return self._planner.create_local_plan()

    def freeze(self, plan: SavePlan, buffers: dict[str, torch.Tensor]) -> Frozen:
        """Copy what falls to this rank, so that training can go on while it is written.

        Args:
            plan: this rank's part of the global plan.
            buffers: the copies of the last time, to be used again; those that do not fit any more are dropped.
        """
        wanted: dict[str, tuple[WriteItem, torch.Tensor]] = {}
        for item in plan.items:
            wanted[f"{item.index.fqn}@{tuple(item.index.offset or ())}"] = item, self._planner.find(item)
        for name in buffers.keys() - wanted.keys():
            del buffers[name]
        frozen = {}
        for name, (item, tensor) in wanted.items():
            if name not in buffers or not _fits(buffers[name], tensor):
                buffers[name] = _buffer_for(tensor)
            frozen[item.index] = buffers[name].copy_(tensor, non_blocking=True)
        if any(tensor.device.type != "cpu" for _, tensor in wanted.values()):
            torch.accelerator.synchronize()  # the copies are on their way; training may change what they read
        self._planner.freeze(frozen)
        small = {rank_file(self.rank): _saved(self._own)}
        if self.rank == 0:
            small[SHARED] = _saved(self._structure)
        return Frozen(self.rank, plan, self._planner, small)

    def _split(self, value: object, path: str) -> object:
        def keep(tensor: torch.Tensor, where: str) -> object:
            if tensor.dim() == 0:  # an optimizer has thousands of these: they would drown the index
                return tensor.detach().cpu().clone()  # alone, without the storage that it may be a part of
            while where in self.tensors:  # {"a.b": {"c": …}, "a": {"b.c": …}} would meet
                where += "'"
            self.tensors[where] = tensor.detach()
            return {_TENSOR: where}

        return _plain(value, path, keep)


class Frozen:
    """A rank's share of a checkpoint, which nothing changes any more; may be written from any thread."""

    def __init__(self, rank: int, plan: SavePlan, planner: _Planner, small: Mapping[str, bytes]) -> None:
        self.rank = rank
        self._plan = plan
        self._planner = planner
        self._small = small

    def write(self, storage: Storage) -> Written:
        """Write this rank's files, synced.

        Args:
            storage: the staging folder.

        Raises:
            OSError: the storage refuses.
        """
        receipts, results = write_tensors(
            storage, self._plan, self._planner, lambda step: failpoint(f"shard.{step}", self.rank)
        )
        failpoint("shard.synced", self.rank)
        for path, content in self._small.items():
            receipts.append(write_file(storage, path, content))
        failpoint("rank_file.synced", self.rank)
        return Written(receipts=tuple(receipts), results=results)


def rank_file(rank: int) -> str:
    """Path of a rank's own file, relative to the checkpoint."""
    return f"ranks/rank-{rank:04d}.pt"


def read_rank_file(storage: Storage, rank: int) -> dict[str, Any]:
    """What belonged to one rank alone; refuses anything but plain values and tensors."""
    return cast("dict[str, Any]", _loaded(storage.read(rank_file(rank))))


def read_structure(storage: Storage) -> dict[str, Any]:
    """The shared state by entries, with a mark wherever a tensor of `data/` belongs."""
    return cast("dict[str, Any]", _loaded(storage.read(SHARED)))


def load_state(storage: Storage, entries: Callable[[str], bool] = lambda _: True) -> dict[str, Any]:
    """The shared state of a checkpoint that was verified, as the entries' `load_state_dict` want it.

    Args:
        storage: the checkpoint's folder.
        entries: which of them.

    Returns:
        entry → its state. Mappings come back as dictionaries, named tuples as tuples, NumPy's numbers as Python's, its
        arrays as tensors, and all tensors on the CPU.

    Raises:
        OSError: a file can't be read.
        ValueError: the index can't be used, or a file is not what it says.
    """
    structure = {name: entry for name, entry in read_structure(storage).items() if entries(name)}
    wanted = set(_tensors_in(structure))
    return cast("dict[str, Any]", _joined(structure, read_tensors(storage, wanted.__contains__)))


class _Planner(DefaultSavePlanner):
    """torch's planner, which finds the living tensors until they are frozen, then the copies."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False)
        self._frozen: Mapping[Any, torch.Tensor] | None = None

    def find(self, item: WriteItem) -> torch.Tensor:
        """The living part of a tensor that an item is about."""
        return cast(torch.Tensor, super().lookup_object(item.index))

    def freeze(self, frozen: Mapping[Any, torch.Tensor]) -> None:
        self._frozen = frozen
        self.state_dict = {}  # the living ones, which may be gone before the copies are written

    def lookup_object(self, index: Any) -> Any:
        return super().lookup_object(index) if self._frozen is None else self._frozen[index]


def _fits(buffer: torch.Tensor, tensor: torch.Tensor) -> bool:
    return buffer.shape == tensor.shape and buffer.dtype == tensor.dtype


def _buffer_for(tensor: torch.Tensor) -> torch.Tensor:
    """Room for a copy on the CPU; page-locked where the tensor is on an accelerator, so that copying is fast."""
    pin = tensor.device.type == "cuda"
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pin)


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, cast(BinaryIO, buffer))
    return buffer.getvalue()


def _loaded(content: bytes) -> object:
    return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")


def _plain(value: object, path: str, keep: Callable[[torch.Tensor, str], object]) -> object:
    """Copy nested containers; tensors go through `keep`; what `weights_only=True` could not read is refused."""
    if isinstance(value, torch.Tensor):
        return keep(value, path)
    if value is None or type(value) in _SCALARS:  # not their subclasses, which are pickled by name
        return _readable(value, path)
    if isinstance(value, Mapping):
        versions = getattr(value, "_metadata", None)  # which layout of its state each module has, as torch keeps it
        if versions:
            bare = dict(value)
            return {_VERSIONS: _plain(dict(versions), f"{path}._metadata", keep), _STATE: _plain(bare, path, keep)}
        return {
            _plain_key(key, path): _plain(item, f"{path}.{key}" if path else str(key), keep)
            for key, item in value.items()
        }
    if isinstance(value, tuple | list):
        items = [_plain(item, f"{path}.{index}", keep) for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, np.generic):
        item = value.item()
        if type(item) in _SCALARS:
            return item
    if isinstance(value, np.ndarray):
        try:
            return torch.from_numpy(value.copy())
        except TypeError:  # texts, dates, objects: torch has no such numbers
            raise _refusal(value, path, f" of {value.dtype}") from None
    raise _refusal(value, path)


def _readable(value: object, path: str) -> object:
    """Two kinds of plain values can be written, and not be read again."""
    if value == b"":
        raise _refusal(value, path, " of no bytes")
    if isinstance(value, int) and value.bit_length() > _BITS:
        raise _refusal(value, path, f" of more than {_BITS} bits")
    return value


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that brings no more along than itself."""
    whole = tensor.untyped_storage().nbytes()
    return tensor.clone() if whole > tensor.numel() * tensor.element_size() else tensor


def _plain_key(key: object, path: str) -> object:
    if type(key) in _SCALARS and key not in (_TENSOR, _VERSIONS, _STATE):  # a key like a mark would be taken for one
        return key
    raise _refusal(key, f"{path}, key {key!r}")


def _refusal(value: object, path: str, more: str = "") -> ProgramError:
    return ProgramError(
        f"checkpoint: state {path!r}: expected tensors, numbers, texts and containers of them, "
        f"received {type(value).__module__}.{type(value).__qualname__}{more}; leave it out of state_dict(), or give "
        "its parts"
    )


def _tensors_in(structure: object) -> list[str]:
    if isinstance(structure, dict):
        if structure.keys() == {_TENSOR}:
            return [structure[_TENSOR]]
        return [name for item in structure.values() for name in _tensors_in(item)]
    if isinstance(structure, list | tuple):
        return [name for item in structure for name in _tensors_in(item)]
    return []


def _joined(structure: object, tensors: Mapping[str, torch.Tensor]) -> object:
    if isinstance(structure, dict):
        if structure.keys() == {_TENSOR}:
            return tensors[structure[_TENSOR]]
        if structure.keys() == {_VERSIONS, _STATE}:
            state = OrderedDict(cast("dict[str, object]", _joined(structure[_STATE], tensors)))
            state._metadata = OrderedDict(structure[_VERSIONS])  # type: ignore[attr-defined]
            return state
        return {key: _joined(item, tensors) for key, item in structure.items()}
    if isinstance(structure, list | tuple):
        items = [_joined(item, tensors) for item in structure]
        return tuple(items) if isinstance(structure, tuple) else items
    return structure
