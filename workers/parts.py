"""Tensors of a checkpoint: read from the files in `data/` into their own memory, and hashed on the way.

A part of a tensor lies in a file as `torch.save` wrote it; `index.py` says where. torch reads it again, through a
stream that sees every byte once (`streams.py`). Used by `shards.py`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from workers.index import INDEX, from_json
from workers.parcels import Receipt
from workers.sharded import Share, Shares
from workers.storage import Storage
from workers.streams import EDGE, Stream, Sum, Window

__all__ = ["read_tensors"]


def read_tensors(
    storage: Storage,
    names: Callable[[str], bool] = lambda _: True,
    *,
    hashed: bool = False,
    shares: Shares = lambda name, size: None,
) -> tuple[dict[str, torch.Tensor], list[Receipt]]:
    """Read tensors of a checkpoint, several files at a time.

    Args:
        storage: the checkpoint's folder.
        names: which ones.
        hashed: read the files in which they lie from the first byte to the last, and tell what was read.
        shares: what of each falls to this rank; the rest of it takes no memory.

    Returns:
        name → tensor on the CPU, or what a share makes of its part; and the receipts of those files, none if not
        `hashed`.

    Raises:
        OSError: a file can't be read.
        ValueError: the index can't be used, or a file is not what it says.
    """
    index = from_json(storage.read(INDEX))
    mine = {
        name: share
        for name, entry in index.state_dict_metadata.items()
        if names(name) and (share := shares(name, cast(TensorStorageMetadata, entry).size)) is not None
    }
    parts = _parts(index, names, mine)
    tensors = {
        part.name: torch.empty(part.whole if part.share is None else part.share.sizes, dtype=part.dtype)
        for file in parts.values()
        for part in file
        if part.wanted and not part.alone
    }
    for name, share in mine.items():  # those of which nothing falls to this rank
        dtype = cast(TensorStorageMetadata, index.state_dict_metadata[name]).properties.dtype
        tensors.setdefault(name, torch.empty(share.sizes, dtype=dtype))
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="rankfire-read")
    try:
        reads = [pool.submit(_read, storage, path, file, tensors, hashed) for path, file in parts.items()]
        receipts = [read.result() for read in reads]
    finally:
        pool.shutdown(cancel_futures=True)
    found = {name: tensors[name] for name in index.state_dict_metadata if name in tensors}
    return {name: mine[name].whole(tensor) if name in mine else tensor for name, tensor in found.items()}, [
        receipt for receipt in receipts if receipt is not None
    ]


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
    share: Share | None

    @property
    def alone(self) -> bool:
        return self.sizes == self.whole and self.share is None


def _parts(index: Metadata, names: Callable[[str], bool], mine: Mapping[str, Share]) -> dict[str, list[_Part]]:
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
        share, size = mine.get(at.fqn), sizes[at.fqn, tuple(offsets)]
        part = _Part(
            name=at.fqn,
            dtype=entry.properties.dtype,
            whole=entry.size,
            offsets=offsets,
            sizes=size,
            start=place.offset,
            bytes=place.length,
            wanted=names(at.fqn) and (share is None or _common(offsets, size, share) is not None),
            share=share,
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
                    _place(tensors[part.name], part, found)
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


def _place(tensor: torch.Tensor, part: _Part, found: torch.Tensor) -> None:
    """Copy a part, or what of it falls to this rank, to where it belongs."""
    if part.share is None:
        spans, origin = list(zip(part.offsets, part.sizes, strict=True)), torch.Size([0] * tensor.dim())
    else:
        spans, origin = _common(part.offsets, part.sizes, part.share) or [], part.share.offsets
    for dim, (begin, size) in enumerate(spans):
        tensor = tensor.narrow(dim, begin - origin[dim], size)
        found = found.narrow(dim, begin - part.offsets[dim], size)
    tensor.copy_(found)


def _common(offsets: torch.Size, sizes: torch.Size, share: Share) -> list[tuple[int, int]] | None:
    """Where a part and a share meet, in each dimension: begin and length. None: nowhere."""
    spans = []
    for at, length, begin, size in zip(offsets, sizes, share.offsets, share.sizes, strict=True):
        first, last = max(at, begin), min(at + length, begin + size)
        if last <= first:
            return None
        spans.append((first, last - first))
    return spans
