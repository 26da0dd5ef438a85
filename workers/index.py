"""The index of a checkpoint's tensors: which part of which one lies where in `data/`, as JSON.

torch keeps the same as a pickle, which runs what is in it. Anyone may have made the JSON, so what is read here is
checked: every part lies in the folder, and the parts are the whole tensor. Written by `dcp.py`, read by `parts.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, cast

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

__all__ = ["INDEX", "from_json", "to_json"]

INDEX = "index.json"
_VERSION = 1


def to_json(metadata: Metadata) -> bytes:
    """The content of `index.json`."""
    where: dict[str, list[dict[str, object]]] = {}
    for index, info in metadata.storage_data.items():
        part = {"file": str(info.relative_path), "start": int(info.offset), "bytes": int(info.length)}
        where.setdefault(index.fqn, []).append({"offsets": list(index.offset or ()), **part})
    tensors = {}
    for name, entry in metadata.state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata), f"{name} is no tensor, so it has no place in data/"
        sizes = {tuple(chunk.offsets): list(chunk.sizes) for chunk in entry.chunks}
        tensors[name] = {
            "dtype": str(entry.properties.dtype).removeprefix("torch."),
            "size": list(entry.size),
            "parts": [{**part, "sizes": sizes[tuple(cast("list[int]", part["offsets"]))]} for part in where[name]],
        }
    return (json.dumps({"version": _VERSION, "tensors": tensors}, indent=1, sort_keys=True) + "\n").encode()


def from_json(content: bytes) -> Metadata:
    """Read `index.json`.

    Raises:
        ValueError: it is none, points outside its folder, or its parts do not make whole tensors.
    """
    try:
        read = json.loads(content)
        if read["version"] != _VERSION:
            raise ValueError(f"{INDEX}: version {read['version']}, this Rankfire reads {_VERSION}")
        entries: dict[str, Any] = {}
        storage: dict[MetadataIndex, _StorageInfo] = {}
        for name, tensor in read["tensors"].items():
            entries[name] = _tensor(name, tensor)
            for part in tensor["parts"]:
                storage[MetadataIndex(name, part["offsets"])] = _place(part)
    except (AttributeError, KeyError, TypeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{INDEX}: damaged: {type(error).__name__}: {error}") from error
    return Metadata(state_dict_metadata=entries, storage_data=storage)


def _tensor(name: str, tensor: Mapping[str, Any]) -> TensorStorageMetadata:
    dtype = getattr(torch, tensor["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{INDEX}: {name}: {tensor['dtype']!r} is no dtype of torch {torch.__version__}")
    size = _whole_numbers(tensor["size"])
    chunks = [
        ChunkStorageMetadata(offsets=_whole_numbers(part["offsets"]), sizes=_whole_numbers(part["sizes"]))
        for part in tensor["parts"]
    ]
    room = sum(_whole_numbers([part["bytes"]])[0] for part in tensor["parts"])
    if not _cover(chunks, size) or math.prod(size) * dtype.itemsize > room:
        raise ValueError(f"{INDEX}: {name}: its parts are not the whole of a tensor of size {list(size)}")
    return TensorStorageMetadata(properties=TensorProperties(dtype=dtype), size=size, chunks=chunks)


def _cover(chunks: Sequence[ChunkStorageMetadata], size: torch.Size) -> bool:
    """Whether the parts lie within the tensor, none over another, and are together as large as it is: they cover it."""
    for chunk in chunks:
        if not len(chunk.offsets) == len(chunk.sizes) == len(size):
            return False
        if any(at + length > end for at, length, end in zip(chunk.offsets, chunk.sizes, size, strict=True)):
            return False
    if len(size) and all(chunk.sizes[1:] == size[1:] for chunk in chunks):  # rows, as most are: pairs would be many
        spans = sorted((chunk.offsets[0], chunk.sizes[0]) for chunk in chunks)
        ends = [at + length for at, length in spans]
        return [at for at, _ in spans] == [0, *ends[:-1]] and ends[-1:] == [size[0]] and len(set(spans)) == len(spans)
    as_large = sum(math.prod(chunk.sizes) for chunk in chunks) == math.prod(size)
    return as_large and not any(_overlap(one, other) for one, other in combinations(chunks, 2))


def _overlap(one: ChunkStorageMetadata, other: ChunkStorageMetadata) -> bool:
    """Whether two parts begin at the same place, or have a number in common."""
    spans = zip(one.offsets, one.sizes, other.offsets, other.sizes, strict=True)
    return one.offsets == other.offsets or all(max(a, b) < min(a + length, b + width) for a, length, b, width in spans)


def _place(part: Mapping[str, Any]) -> _StorageInfo:
    file = part["file"]
    if not file or "/" in file or file in {".", ".."}:
        raise ValueError(f"{INDEX}: a tensor is said to lie in {file!r}, outside the folder")
    start, length = _whole_numbers([part["start"], part["bytes"]])
    return _StorageInfo(file, start, length)


def _whole_numbers(values: Sequence[Any]) -> torch.Size:
    if not isinstance(values, list) or any(type(value) is not int or value < 0 for value in values):
        raise TypeError(f"expected whole numbers, received {values!r}")
    return torch.Size(values)
