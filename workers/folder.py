"""Storage in a folder that this machine reaches: a disk, or a file system that is mounted."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from workers.storage import Storage

__all__ = ["Folder"]


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

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[BinaryIO]:  # noqa: D102
        whole = self.root / path
        _make_folder_of(whole)
        with os.fdopen(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

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

    def _write(self, path: Path, content: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def _make_folder_of(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except FileExistsError as error:  # which would say that somebody else was first
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)) from error


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
