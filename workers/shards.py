"""One rank's part of a checkpoint: tell what there is, freeze this rank's share, write it, load it again.

Tensors go through torch's distributed checkpoint format into `data/`, planned by the ranks and the driver together
without any process group. What else the shared state holds goes into `shared.pt`, which rank 0 writes; what belongs to
one rank alone into `ranks/rank-NNNN.pt`. Both hold only what `weights_only=True` reads. When all this becomes a
checkpoint is the driver's decision.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlan, WriteItem

from workers.aliases import Key, key_of, lying_in, tensors_of
from workers.dcp import write_file, write_tensors
from workers.failpoints import failpoint
from workers.parcels import Receipt
from workers.parts import read_tensors
from workers.sharded import Part, Shares, part_of
from workers.storage import Storage
from workers.structure import DEPTH, TENSOR, VIEW, compact, joined, plain, tensors_in

__all__ = [
    "SHARED",
    "Frozen",
    "Shards",
    "Written",
    "load_hashed",
    "load_state",
    "rank_file",
    "read_rank_file",
    "read_structure",
]

SHARED = "shared.pt"


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
        self.tensors: dict[str, torch.Tensor | Part] = {}
        self._structure = self._split(shared, "")
        self._own = plain(own, "own", lambda tensor, _: compact(tensor.detach()))
        self._planner = _Planner()

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of the tensors in each entry of the shared state."""
        tensors = self.tensors
        return {
            name: sum(tensors[found].numel() * tensors[found].element_size() for found in set(tensors_in(entry)))
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
        known = _Aliases(value)

        def keep(tensor: torch.Tensor, where: str) -> object:
            return known.mark(tensor, where, kept)

        def kept(tensor: torch.Tensor, where: str) -> object:
            part = part_of(tensor, where)
            if isinstance(part, torch.Tensor):
                part = part.detach()
                if part.dim() == 0:  # an optimizer has thousands of these: they would drown the index
                    return part.cpu().clone()  # alone, without the storage that it may be a part of
            while where in self.tensors:  # {"a.b": {"c": …}, "a": {"b.c": …}} would meet
                where += "'"
            self.tensors[where] = part
            return {TENSOR: where}

        return plain(value, path, keep)


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
    """Path of a rank's own file, relative to the checkpoint.

    Example:
        >>> rank_file(3)
        'ranks/rank-0003.pt'
    """
    return f"ranks/rank-{rank:04d}.pt"


def read_rank_file(storage: Storage, rank: int) -> dict[str, Any]:
    """What belonged to one rank alone; refuses anything but plain values and tensors."""
    return cast("dict[str, Any]", _loaded(storage.read(rank_file(rank))))


def read_structure(storage: Storage) -> dict[str, Any]:
    """The shared state by entries, with a mark wherever a tensor of `data/` belongs."""
    return cast("dict[str, Any]", _loaded(storage.read(SHARED)))


def load_state(
    storage: Storage, entries: Callable[[str], bool] = lambda _: True, shares: Shares = lambda name, size: None
) -> dict[str, Any]:
    """The shared state of a checkpoint that was verified, as the entries' `load_state_dict` want it.

    Args:
        storage: the checkpoint's folder.
        entries: which of them.
        shares: what of each tensor falls to this rank.

    Returns:
        entry → its state. Mappings come back as dictionaries, named tuples as tuples, NumPy's numbers as Python's, its
        arrays as tensors, and all tensors on the CPU.

    Raises:
        OSError: a file can't be read.
        ValueError: the index can't be used, or a file is not what it says.
    """
    return _load(storage, entries, shares=shares)[0]


def load_hashed(
    storage: Storage, entries: Callable[[str], bool] = lambda _: True
) -> tuple[dict[str, Any], list[Receipt]]:
    """Like `load_state`, for a checkpoint yet to be verified: tells also what was read of `data/`, as it was read."""
    return _load(storage, entries, hashed=True)


def _load(
    storage: Storage,
    entries: Callable[[str], bool],
    *,
    hashed: bool = False,
    shares: Shares = lambda name, size: None,
) -> tuple[dict[str, Any], list[Receipt]]:
    structure = {name: entry for name, entry in read_structure(storage).items() if entries(name)}
    tensors, receipts = read_tensors(storage, set(tensors_in(structure)).__contains__, hashed=hashed, shares=shares)
    return cast("dict[str, Any]", joined(structure, tensors)), receipts


class _Aliases:
    """The tensors of a state that share memory: they are written once, and share it again when they are read.

    Args:
        state: as it lives.
    """

    def __init__(self, state: object) -> None:
        found: dict[Key, tuple[str, torch.Tensor]] = {}
        for path, tensor in tensors_of(state, "", DEPTH):
            if (key := key_of(tensor)) is not None:
                found.setdefault(key, (path, tensor))
        keys, tensors = list(found), [tensor for _, tensor in found.values()]
        self._found = found
        self._holders: dict[Key, Key] = {
            keys[number]: keys[holder]
            for number, holder in enumerate(lying_in(tensors, _written_as_it_lies))
            if holder is not None and tensors[number].dtype == tensors[holder].dtype
        }
        self._marks: dict[Key, object] = {}

    def mark(self, tensor: torch.Tensor, where: str, keep: Callable[[torch.Tensor, str], object]) -> object:
        """What stands in a tensor's place.

        Args:
            tensor: a tensor of the state.
            where: its path.
            keep: gives that for a tensor by itself.
        """
        key = key_of(tensor)
        if key is None:
            return keep(tensor, where)
        holder = self._holders.get(key)
        if holder is not None:
            path, whole = self._found[holder]
            mark = self.mark(whole, path, keep)
            offset = (tensor.data_ptr() - whole.data_ptr()) // tensor.element_size()
            return {**cast("dict[str, object]", mark), VIEW: (offset, tuple(tensor.shape), tensor.stride())}
        if key not in self._marks:
            self._marks[key] = keep(tensor, where)
        return self._marks[key]


def _written_as_it_lies(tensor: torch.Tensor) -> bool:
    return tensor.dim() > 0 and tensor.is_contiguous()


class _Planner(DefaultSavePlanner):
    """torch's planner, which finds the living tensors until they are frozen, then the copies."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False)
        self._frozen: Mapping[Any, torch.Tensor] | None = None

    def find(self, item: WriteItem) -> torch.Tensor:
        """The living part of a tensor that an item is about."""
        thing = self.state_dict[item.index.fqn]
        return thing.local if isinstance(thing, Part) else cast(torch.Tensor, super().lookup_object(item.index))

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
