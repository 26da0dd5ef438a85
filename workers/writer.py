"""Writes a rank's frozen share of a checkpoint while training goes on: one thread, at most one share at a time.

That only one is in flight is the driver's doing. Made by `saving.py`. How far it is can be seen from any thread, since
a storage may hold on to a write for ever.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from workers.locations import storage_at
from workers.parcels import Failure, Writing
from workers.retry import retrying
from workers.shards import Frozen, Written
from workers.storage import Storage

__all__ = ["ShardWriter"]

Told = Callable[[str, "Written | None", "Failure | None"], None]


class ShardWriter:
    """The writing thread of one rank.

    Args:
        told: called on that thread with the folder's URL, and what was written or why it was not.

    Attributes:
        writing: how far it is; None when nothing is written.
    """

    def __init__(self, told: Told) -> None:
        self.writing: Writing | None = None
        self._told = told
        self._thread: threading.Thread | None = None
        self._url: str | None = None

    def start(self, frozen: Frozen, url: str) -> None:
        """Begin to write; returns at once.

        Args:
            frozen: the share.
            url: the staging folder.
        """
        self.join()
        self._url = url
        self._thread = threading.Thread(target=self._write, args=(frozen, url), name="rankfire-save", daemon=True)
        self._thread.start()

    def join(self, timeout: float | None = None) -> None:
        """Wait until nothing is being written."""
        if self._thread is not None:
            self._thread.join(timeout)

    def held_by(self, *urls: str) -> bool:
        """Whether the storage has not let go yet of a share for one of these folders."""
        return self._url in urls and self._thread is not None and self._thread.is_alive()

    def _write(self, frozen: Frozen, url: str) -> None:
        try:
            storage = cast(Storage, _Followed(storage_at(url), self._note))
            written = retrying(f"write a share of {url}", lambda: frozen.write(storage))
        except BaseException as error:  # whatever it was, the driver waits for an answer and decides
            self._told(url, None, Failure.of(error))
        else:
            self._told(url, written, None)
        finally:
            self.writing = None

    def _note(self, path: str, count: int) -> None:
        self.writing = Writing(path=path, bytes=count)


class _Followed:
    """A storage that tells which file is written, and how much of it has gone by.

    Args:
        storage: the true one.
        note: told of a file's path, and bytes.
    """

    def __init__(self, storage: Storage, note: Callable[[str, int], None]) -> None:
        self._storage = storage
        self._note = note

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[BinaryIO]:
        """As the true one does."""
        self._note(path, 0)
        with self._storage.create(path) as file:
            yield cast(BinaryIO, _Counted(file, lambda count: self._note(path, count)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)


class _Counted:
    """A file that tells how much was written to it."""

    def __init__(self, file: BinaryIO, note: Callable[[int], None]) -> None:
        self._file = file
        self._note = note
        self._count = 0

    def write(self, block: Any) -> int:
        """As the true one does."""
        written = self._file.write(block)
        self._count += memoryview(block).nbytes
        self._note(self._count)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
