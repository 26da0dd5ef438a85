"""torch's distributed checkpoint format on our storage: files that are hashed while they are written, an index in JSON.

torch's own planner and writer do the work. `.metadata`, the pickle that torch's tools want, is written too, but what is
loaded (`parts.py`) is told by `index.json` (`index.py`), which can hold nothing but numbers and names.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from torch.distributed.checkpoint.filesystem import (
    CURRENT_DCP_VERSION,
    FileSystemBase,
    FileSystemWriter,
)
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.utils.serialization import config

from workers.index import INDEX, to_json
from workers.parcels import Receipt
from workers.storage import Storage

__all__ = ["METADATA", "index_files", "write_file", "write_tensors"]

METADATA = "data/.metadata"


# ---------------------------------------------------------------- writing
def write_file(storage: Storage, path: str, content: bytes) -> Receipt:
    """Write one file whole and synced.

    Args:
        storage: the checkpoint's folder.
        path: relative to it.
        content: all of it.
    """
    with storage.create(path) as file:
        file.write(content)
    return Receipt(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def write_tensors(
    storage: Storage, plan: SavePlan, planner: SavePlanner, progress: Callable[[str], None]
) -> tuple[list[Receipt], list[Any]]:
    """Write a rank's tensors into `data/`.

    Args:
        storage: the checkpoint's folder.
        plan: this rank's part of the global plan.
        planner: resolves the plan's items to tensors.
        progress: told "opened" and "half" as the file grows.

    Returns:
        Receipts of the files, and torch's results for the index.
    """
    if not plan.items:  # else torch would leave an empty file behind
        return [], []
    files = _Files(storage, progress)
    writer = FileSystemWriter("data", single_file_per_rank=True, sync_files=False)  # `_Files` syncs
    writer.fs = files  # type: ignore[assignment]
    writer.path = "data"
    with _one_sum():
        results = writer.write_data(planner.finish_plan(plan), planner).wait()
    return files.receipts, list(results)


@contextmanager
def _one_sum() -> Iterator[None]:
    """torch's own CRC-32 of every tensor is left out: each byte is in a sha256 already, and two sums cost twice.

    torch's readers do not ask for it. The setting is the process's: what a user saves in these moments lacks it too.
    """
    before = config.save.compute_crc32
    config.save.compute_crc32 = False
    try:
        yield
    finally:
        config.save.compute_crc32 = before


def index_files(metadata: Metadata, results: Sequence[Sequence[Any]]) -> dict[str, bytes]:
    """The index of all ranks' tensors, for us (`index.json`) and for torch's tools (`data/.metadata`).

    Args:
        metadata: what torch's global plan says of the tensors.
        results: of every rank's `write_tensors`.

    Returns:
        path → content.
    """
    metadata.version = CURRENT_DCP_VERSION
    metadata.storage_data = {result.index: result.storage_data for rank in results for result in rank}
    metadata.storage_meta = StorageMeta()
    return {INDEX: to_json(metadata), METADATA: pickle.dumps(metadata)}


# ---------------------------------------------------------------- torch's idea of a file system
class _Hashed(io.RawIOBase):
    """A file that is written from beginning to end; knows the sha256 of what went by."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._written = 0
        self._refusal: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, block: Any) -> int:
        try:
            self._file.write(block)
        except OSError as error:
            self._refusal = error
            raise
        self._digest.update(block)
        count = memoryview(block).nbytes
        self._written += count
        return count

    def tell(self) -> int:
        return self._written

    def flush(self) -> None:
        """Nothing is held here."""

    def close(self) -> None:
        """The file's owner closes it."""

    @contextmanager
    def plain_errors(self) -> Iterator[None]:
        """What the storage refused is told as that; torch makes another error of it, about a position."""
        try:
            yield
        except Exception:
            if self._refusal is not None:
                raise self._refusal from None
            raise

    def receipt(self, path: str) -> Receipt:
        return Receipt(path=path, size=self._written, sha256=self._digest.hexdigest())


class _Files(FileSystemBase):
    """Our storage, as torch's writer wants it."""

    def __init__(self, storage: Storage, progress: Callable[[str], None] = lambda _: None) -> None:
        self._storage = storage
        self._progress = progress
        self.receipts: list[Receipt] = []

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        name = os.fspath(path)
        with self._storage.create(name) as file:
            hashed = _Watched(file, self._progress)
            self._progress("opened")
            with hashed.plain_errors():
                yield hashed
            receipt = hashed.receipt(name)
        self.receipts.append(receipt)

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        return f"{os.fspath(path)}/{suffix}"

    def init_path(self, path: str | os.PathLike[str]) -> str:
        return os.fspath(path)

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        raise NotImplementedError("nothing is renamed here: what a checkpoint is, its manifest says")

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """Folders come with their files."""

    def exists(self, path: str | os.PathLike[str]) -> bool:
        return self._storage.exists(os.fspath(path))

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        self._storage.remove(os.fspath(path))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


class _Watched(_Hashed):
    """Tells once when something is written and more will come."""

    def __init__(self, file: BinaryIO, progress: Callable[[str], None]) -> None:
        super().__init__(file)
        self._progress = progress
        self._told = False

    def write(self, block: Any) -> int:
        count = super().write(block)
        if not self._told:
            self._told = True
            try:
                self._file.flush()
                self._progress("half")
            except OSError as error:
                self._refusal = error
                raise
        return count
