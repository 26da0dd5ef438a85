"""Tensors of a checkpoint: read from the files in `data/` into their own memory, and hashed on the way.

A part of a tensor lies in a file as `torch.save` wrote it; `index.py` says where. torch reads it again, through a
stream that sees every byte once (`streams.py`). Used by `shards.py`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from workers.index import INDEX, from_json
from workers.parcels import Receipt
from workers.storage import Storage
from workers.streams import EDGE, Stream, Sum, Window

__all__ = ["read_tensors"]


def read_tensors(
    storage: Storage, names: Callable[[str], bool] = lambda _: True, *, hashed: bool = False
) -> tuple[dict[str, torch.Tensor], list[Receipt]]:
    """Read tensors of a checkpoint, several files at a time.

    Args:
        storage: the checkpoint's folder.
        names: which ones.
        hashed: read the files in which they lie from the first byte to the last, and tell what was read.

    Returns:
        name → tensor on the CPU; and the receipts of those files, none if not `hashed`.

    Raises:
        OSError: a file can't be read.
        ValueError: the index can't be used, or a file is not what it says.
    """
    index = from_json(storage.read(INDEX))
    parts = _parts(index, names)
    tensors = {
        part.name: torch.empty(part.whole, dtype=part.dtype)
        for file in parts.values()
        for part in file
        if part.wanted and not part.alone
    }
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="rankfire-read")
    try:
        reads = [pool.submit(_read, storage, path, file, tensors, hashed) for path, file in parts.items()]
        receipts = [read.result() for read in reads]
    finally:
        pool.shutdown(cancel_futures=True)
    names_in_order = [name for name in index.state_dict_metadata if name in tensors]
    return {name: tensors[name] for name in names_in_order}, [receipt for receipt in receipts if receipt is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A part of a tensor, and where it lies in its file; `whole` is the size of the tensor."""

    name: str
    dtype: torch.dtype
    whole: torch.Size
    offsets: torch.Size
    sizes: torch.Size
    start: int
    bytes: int
    wanted: bool

    @property
    def alone(self) -> bool:
        return self.sizes == self.whole


def _parts(index: Metadata, names: Callable[[str], bool]) -> dict[str, list[_Part]]:
    """By file, in the order in which they lie there; only of files in which there is something wanted."""
    sizes = {
        (name, tuple(chunk.offsets)): chunk.sizes
        for name, entry in index.state_dict_metadata.items()
        for chunk in cast(TensorStorageMetadata, entry).chunks
    }
    files: dict[str, list[_Part]] = {}
    for at, place in index.storage_data.items():
        entry = cast(TensorStorageMetadata, index.state_dict_metadata[at.fqn])
        offsets = torch.Size(at.offset or ())
        part = _Part(
            name=at.fqn,
            dtype=entry.properties.dtype,
            whole=entry.size,
            offsets=offsets,
            sizes=sizes[at.fqn, tuple(offsets)],
            start=place.offset,
            bytes=place.length,
            wanted=names(at.fqn),
        )
        files.setdefault(f"data/{place.relative_path}", []).append(part)
    wanted = {path: file for path, file in files.items() if any(part.wanted for part in file)}
    return {path: sorted(file, key=lambda part: part.start) for path, file in wanted.items()}


def _read(
    storage: Storage, path: str, parts: Sequence[_Part], tensors: dict[str, torch.Tensor], hashed: bool
) -> Receipt | None:
    """Read one file; what was read goes into `tensors`."""
    with storage.open(path) as file, Sum.of(hashed) as total:
        stream = Stream(file, total)
        for part in parts:
            if part.wanted:
                with _told_as_damage():
                    stream.skip_to(part.start)
                    found = _checked(_load(stream, part.bytes), part)
                if part.alone:
                    tensors[part.name] = found
                else:
                    _place(tensors[part.name], part).copy_(found)
        if total is None:
            return None
        size = stream.skip_to_end()
        return Receipt(path=path, size=size, sha256=total.hexdigest())


@contextmanager
def _told_as_damage() -> Iterator[None]:
    """Bytes that are no tensor make torch raise errors of all kinds."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"a tensor can't be read: {type(error).__name__}: {error}") from error


def _load(stream: Stream, size: int) -> object:
    """What torch reads of the next `size` bytes, all of which go by."""
    if size <= 4 * EDGE or not stream.seeks:
        return torch.load(io.BytesIO(stream.take(size)), map_location="cpu", weights_only=True)
    with Window(stream, size).plain_errors() as window:
        return torch.load(cast(BinaryIO, window), map_location="cpu", weights_only=True)


def _checked(found: object, part: _Part) -> torch.Tensor:
    if not isinstance(found, torch.Tensor):
        raise TypeError(f"{part.name}: expected a tensor, received {type(found).__name__}")
    received = (found.layout, found.dtype, found.shape)
    if received != (torch.strided, part.dtype, part.sizes):
        raise TypeError(f"{part.name}: expected {part.dtype} of size {list(part.sizes)}, received {received}")
    return found


def _place(tensor: torch.Tensor, part: _Part) -> torch.Tensor:
    for dim, (offset, size) in enumerate(zip(part.offsets, part.sizes, strict=True)):
        tensor = tensor.narrow(dim, offset, size)
    return tensor
