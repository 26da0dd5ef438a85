"""One rank's part of a checkpoint: freeze the state, plan, write, and load it again.

Tensors go through torch's distributed checkpoint format into `data/`, planned by the ranks and the driver together
without any process group; everything else, with this rank's own state, goes into `ranks/rank-NNNN.pt`, which holds only
what `weights_only=True` reads. When a folder becomes a checkpoint is the driver's decision.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.state_dict_loader import load

from workers.errors import ProgramError
from workers.metadata import read_metadata

__all__ = ["FrozenState", "Receipt", "Written", "load_state", "rank_file", "read_rank_file"]

_SCALARS = (bool, int, float, str, bytes)
_TENSOR = "__tensor__"  # marks, in the structure, where a tensor of data/ belongs


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A file that was written and synced: path relative to the checkpoint, bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What one rank wrote: receipts of its files, and torch's results for the metadata."""

    receipts: tuple[Receipt, ...]
    results: object


class FrozenState:
    """The state of a rank at a gate, split into tensors for `data/` and the rest.

    Args:
        shared: entries that are equal on all ranks (rank 0's copy is written): model, optimizer …
        own: what belongs to this rank alone: random numbers, engines.
        rank: this rank.

    Raises:
        ProgramError: the state holds something that is neither tensor nor plain value; says where.
    """

    def __init__(self, shared: Mapping[str, object], own: Mapping[str, object], rank: int) -> None:
        self.rank = rank
        self.tensors: dict[str, torch.Tensor] = {}
        self.rest = {
            "structure": self._split(shared, ""),
            "own": _plain(own, "own", lambda tensor, _: tensor),
        }
        self._planner = DefaultSavePlanner(flatten_state_dict=False)

    def plan(self) -> SavePlan:
        """What this rank would write of `data/`; the driver merges the plans of all ranks."""
        self._planner.set_up_planner(cast(Any, self.tensors), None, self.rank == 0)
        return self._planner.create_local_plan()

    def write(self, folder: str, plan: SavePlan) -> Written:
        """Write this rank's files into a staging folder, synced to the disk.

        Args:
            folder: the staging folder; exists, with `data/` and `ranks/` in it.
            plan: this rank's part of the global plan.
        """
        base = Path(folder)
        results: list[Any] = []
        if plan.items:  # else torch would leave an empty file behind
            writer = FileSystemWriter(base / "data", single_file_per_rank=True, sync_files=True)
            results = writer.write_data(self._planner.finish_plan(plan), self._planner).wait()
        own = base / rank_file(self.rank)
        with own.open("wb") as file:
            torch.save(self.rest, file)
            file.flush()
            os.fsync(file.fileno())
        names = sorted({f"data/{result.storage_data.relative_path}" for result in results})
        return Written(
            receipts=tuple(receipt_of(base, name) for name in [*names, rank_file(self.rank)]), results=results
        )

    def _split(self, value: object, path: str) -> object:
        def keep(tensor: torch.Tensor, where: str) -> object:
            if tensor.dim() == 0:  # an optimizer has thousands of these: they would drown the index
                return tensor.detach().cpu()
            while where in self.tensors:  # {"a.b": {"c": …}, "a": {"b.c": …}} would meet
                where += "'"
            self.tensors[where] = tensor.detach()
            return {_TENSOR: where}

        return _plain(value, path, keep)


def rank_file(rank: int) -> str:
    """Path of a rank's own file, relative to the checkpoint."""
    return f"ranks/rank-{rank:04d}.pt"


def receipt_of(base: Path, name: str) -> Receipt:
    """Size and sha256 of a file that lies there."""
    with (base / name).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file)
        return Receipt(path=name, size=file.tell(), sha256=digest.hexdigest())


def read_rank_file(folder: str, rank: int) -> dict[str, Any]:
    """What `FrozenState.write` put into a rank's own file; refuses anything but plain values and tensors."""
    loaded = torch.load(Path(folder) / rank_file(rank), weights_only=True, map_location="cpu")
    return cast("dict[str, Any]", loaded)


def load_state(folder: str, structure: object) -> dict[str, Any]:
    """The shared state of a checkpoint, as the entries' `load_state_dict` want it.

    Args:
        folder: a committed checkpoint, already verified.
        structure: the `structure` of a rank's own file.
    """
    data = Path(folder) / "data"
    index = read_metadata(data / ".metadata")
    tensors: dict[str, torch.Tensor] = {}
    for key, entry in index.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            tensors[key] = torch.empty(entry.size, dtype=entry.properties.dtype)
    if tensors:
        with warnings.catch_warnings():  # that one process loads alone is what is meant here
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            load(cast(Any, tensors), storage_reader=_Reader(data, index), no_dist=True)
    return cast("dict[str, Any]", _joined(structure, tensors))


class _Reader(FileSystemReader):
    """Reads with metadata that the restricted reader accepted."""

    def __init__(self, data: Path, index: Metadata) -> None:
        super().__init__(data)
        self._index = index

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self._index.storage_meta is None:
            self._index.storage_meta = StorageMeta()
        self._index.storage_meta.load_id = self.load_id
        return self._index


def _plain(value: object, path: str, keep: Callable[[torch.Tensor, str], object]) -> object:
    """Copy nested containers; tensors go through `keep`; what `weights_only=True` could not read is refused."""
    if isinstance(value, torch.Tensor):
        return keep(value, path)
    if value is None or type(value) in _SCALARS:  # not their subclasses, which are pickled by name
        return value
    if isinstance(value, Mapping):
        return {
            _plain_key(key, path): _plain(item, f"{path}.{key}" if path else str(key), keep)
            for key, item in value.items()
        }
    if isinstance(value, tuple | list):
        items = [_plain(item, f"{path}.{index}", keep) for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    raise _refusal(value, path)


def _plain_key(key: object, path: str) -> object:
    if type(key) in _SCALARS:
        return key
    raise _refusal(key, f"{path}, key {key!r}")


def _refusal(value: object, path: str) -> ProgramError:
    return ProgramError(
        f"checkpoint: state {path!r}: expected tensors, numbers, texts and containers of them, "
        f"received {type(value).__module__}.{type(value).__qualname__}; leave it out of state_dict(), or give its parts"
    )


def _joined(structure: object, tensors: Mapping[str, torch.Tensor]) -> object:
    if isinstance(structure, dict):
        if structure.keys() == {_TENSOR}:
            return tensors[structure[_TENSOR]]
        return {key: _joined(item, tensors) for key, item in structure.items()}
    if isinstance(structure, list | tuple):
        items = [_joined(item, tensors) for item in structure]
        return tuple(items) if isinstance(structure, tuple) else items
    return structure


def _digest(file: Any) -> Any:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest
