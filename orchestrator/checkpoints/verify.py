"""Whether a checkpoint's files are, byte for byte, what its manifest says. Reads them all, several at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from orchestrator.checkpoints.manifest import Manifest
from workers.parcels import Receipt
from workers.retry import retrying
from workers.storage import Storage

__all__ = ["damage", "problems"]

BLOCK = 8 << 20  # bytes that are hashed in one go; hashlib lets other threads run meanwhile


def damage(storage: Storage, manifest: Manifest, read: Iterable[Receipt] = ()) -> str | None:
    """What is wrong with a checkpoint's files, or None if every byte is as the manifest says.

    Args:
        storage: the checkpoint's folder.
        manifest: its manifest.
        read: receipts of files that the caller has read and hashed already.
    """
    return next(iter(problems(storage, manifest, read)), None)


def problems(storage: Storage, manifest: Manifest, read: Iterable[Receipt] = ()) -> Iterator[str]:
    """All that is wrong with a checkpoint's files, in the order of the manifest; the arguments are as in `damage`."""
    known = {entry.path: entry for entry in read}
    largest_first = sorted(manifest.files, key=lambda entry: -entry.size)
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="rankfire-verify")
    try:
        found = dict(zip(_paths(largest_first), pool.map(partial(_wrong, storage, known), largest_first), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C need not wait for files that nobody has begun to read
    for path in _paths(manifest.files):
        if (wrong := found[path]) is not None:
            yield wrong


def _paths(files: Iterable[Receipt]) -> list[str]:
    return [entry.path for entry in files]


def _wrong(storage: Storage, known: Mapping[str, Receipt], entry: Receipt) -> str | None:
    if entry.path in known:
        return _difference(entry, known[entry.path])
    try:
        return retrying(f"verify {entry.path}", lambda: _compare(storage, entry))
    except FileNotFoundError:
        return f"{entry.path} is missing"
    except OSError as error:
        return f"{entry.path} can't be read: {error.strerror or error}"


def _compare(storage: Storage, entry: Receipt) -> str | None:
    size = storage.size(entry.path)
    if size != entry.size:  # known without reading it
        return _difference(entry, Receipt(path=entry.path, size=size, sha256=""))
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK))
    with storage.open(entry.path) as file:
        while read := file.readinto(block):  # type: ignore[attr-defined]  # every binary file has it
            digest.update(block[:read])
    return _difference(entry, Receipt(path=entry.path, size=size, sha256=digest.hexdigest()))


def _difference(entry: Receipt, found: Receipt) -> str | None:
    if found.size != entry.size:
        return f"{entry.path} has {found.size} bytes, its manifest says {entry.size}"
    return None if found == entry else f"{entry.path} is not what was written: its sha256 differs"
