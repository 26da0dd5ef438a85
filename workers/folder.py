"""Storage in a folder that this machine reaches: a disk, or a file system that is mounted."""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import itertools
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from workers.storage import Storage

__all__ = ["Folder"]

AHEAD = 32 << 20  # bytes that may be written but not yet on the way to the disk


class Folder(Storage):
    """A folder that this machine reaches."""

    moves = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def child(self, path: str) -> Folder:  # noqa: D102 - said in Storage, as for all that follow
        return Folder(self.root / path)

    def make_folder(self, path: str) -> None:  # noqa: D102
        folder = self.root / path
        _make_folder_of(folder)
        folder.mkdir(mode=0o700)
        _sync_folder(folder.parent)

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[BinaryIO]:  # noqa: D102
        whole = self.root / path
        _make_folder_of(whole)
        with _Synced(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)) as file:
            yield cast(BinaryIO, file)
            file.sync()

    def claim(self, path: str, content: bytes) -> None:  # noqa: D102
        whole = self.root / path
        _make_folder_of(whole)
        temporary = whole.with_name(f".{whole.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            self._write(temporary, content)
            os.link(temporary, whole)  # with its content, or not at all; works on NFS as well
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(whole.parent)

    def replace(self, path: str, content: bytes) -> None:  # noqa: D102
        whole = self.root / path
        temporary = whole.with_name(f".{whole.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            self._write(temporary, content)
            temporary.replace(whole)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(whole.parent)

    def open(self, path: str) -> contextlib.AbstractContextManager[BinaryIO]:  # noqa: D102
        return (self.root / path).open("rb")

    def size(self, path: str) -> int:  # noqa: D102
        whole = self.root / path
        if whole.is_dir():
            raise FileNotFoundError(f"{whole} is a folder")
        return whole.stat().st_size

    def names(self, path: str = "") -> list[str]:  # noqa: D102
        try:
            return sorted(name for name in os.listdir(self.root / path) if not name.endswith(".tmp"))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files(self, path: str = "") -> list[str]:  # noqa: D102
        folder = self.root / path
        return sorted(str(found.relative_to(folder)) for found in folder.rglob("*") if not found.is_dir())

    def remove(self, path: str) -> None:  # noqa: D102
        whole = self.root / path
        if whole.is_dir() and not whole.is_symlink():
            shutil.rmtree(whole)
        else:
            whole.unlink(missing_ok=True)
            for temporary in whole.parent.glob(f".{glob.escape(whole.name)}.*.tmp"):  # of who died while it wrote it
                temporary.unlink(missing_ok=True)

    def move(self, path: str, to: str) -> None:  # noqa: D102
        (self.root / path).rename(self.root / to)

    def sync(self, path: str) -> None:  # noqa: D102
        _sync_folder(self.root / path)

    def tidy(self) -> None:  # noqa: D102
        for temporary in self.root.glob(".*.tmp"):
            temporary.unlink(missing_ok=True)

    def _write(self, path: Path, content: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


class _Synced(io.FileIO):
    """A file that is brought to the disk while it is written, so that the end need not wait for all of it.

    The one who writes may be busy with each block, hashing it; the disk is at work meanwhile.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb")
        self._since = 0  # bytes written since the disk was last sent to work
        self._disk: threading.Thread | None = None
        self._refusal: OSError | None = None

    def write(self, block: Any, /) -> int:
        """Write all of it, which the kernel need not do in one go."""
        rest = memoryview(block).cast("B")
        count = len(rest)
        while len(rest):
            rest = rest[super().write(rest) :]
        self._since += count
        if self._since >= AHEAD and (self._disk is None or not self._disk.is_alive()):
            self._since = 0
            self._disk = threading.Thread(target=self._start_disk, name="rankfire-disk", daemon=True)
            self._disk.start()
        return count

    def sync(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            OSError: the disk refuses, now or before.
        """
        if self._disk is not None:
            self._disk.join()
        if self._refusal is not None:
            raise self._refusal
        os.fsync(self.fileno())

    def close(self) -> None:
        """Close it when the disk does not need it any more."""
        if self._disk is not None:
            self._disk.join()
        super().close()

    def _start_disk(self) -> None:
        try:
            os.fdatasync(self.fileno())
        except OSError as error:  # the kernel tells an error once: the last sync would not hear of it again
            self._refusal = error


def _make_folder_of(path: Path) -> None:
    """Make the folders above a path, durably: a file is not there after a power cut if the name of a folder is not."""
    missing = list(itertools.takewhile(lambda folder: not folder.exists(), path.parents))
    try:
        for folder in reversed(missing):  # each of them for its owner alone, which `parents=True` would not do
            folder.mkdir(exist_ok=True, mode=0o700)
        path.parent.mkdir(exist_ok=True, mode=0o700)
    except FileExistsError as error:  # which would say that somebody else was first
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)) from error
    for folder in missing:
        _sync_folder(folder.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
