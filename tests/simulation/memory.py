"""Storage in the memory of this process, which can rename or can't, and refuses what a simulation says it refuses."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import BinaryIO

from workers.storage import Storage

__all__ = ["Disk", "Memory"]


class Disk:
    """All files of a simulation.

    Args:
        url: what they lie below.
        moves: whether a folder can be renamed, as on a disk; an object store can't.

    Attributes:
        refuse: called with a verb and a path before anything is written; may raise an `OSError`.
        changed: called after a folder was renamed or something was removed.
    """

    def __init__(self, url: str, *, moves: bool) -> None:
        self.url = url
        self.moves = moves
        self.files: dict[str, bytes] = {}
        self.folders: set[str] = set()
        self.refuse: Callable[[str, str], None] = lambda verb, path: None
        self.changed: Callable[[str], None] = lambda path: None

    def at(self, url: str) -> Memory:
        """The storage of a URL below this disk's own."""
        assert url == self.url or url.startswith(f"{self.url}/"), f"{url} is not on this disk"
        return Memory(self, url[len(self.url) + 1 :])


class Memory(Storage):
    """Files below one folder of a disk."""

    def __init__(self, disk: Disk, root: str = "") -> None:
        self._disk = disk
        self._root = root
        self.moves = disk.moves
        self.url = f"{disk.url}/{root}" if root else disk.url

    def child(self, path: str) -> Memory:
        return Memory(self._disk, self._key(path))

    def make_folder(self, path: str) -> None:
        if not self.moves:
            self.claim(f"{path}/.claim", b"")
            return
        self._disk.refuse("make", self._key(path))
        if self._there(path):
            raise FileExistsError(path)
        self._disk.folders.add(self._key(path))

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[BinaryIO]:
        self._disk.refuse("create", self._key(path))
        file = io.BytesIO()
        yield file
        self._disk.files[self._key(path)] = file.getvalue()

    def claim(self, path: str, content: bytes) -> None:
        self._disk.refuse("claim", self._key(path))
        if self._key(path) in self._disk.files:
            raise FileExistsError(path)
        self._disk.files[self._key(path)] = content

    def replace(self, path: str, content: bytes) -> None:
        self._disk.refuse("replace", self._key(path))
        self._disk.files[self._key(path)] = content

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        yield io.BytesIO(self.read(path))

    def read(self, path: str) -> bytes:
        try:
            return self._disk.files[self._key(path)]
        except KeyError:
            raise FileNotFoundError(path) from None

    def size(self, path: str) -> int:
        return len(self.read(path))

    def names(self, path: str = "") -> list[str]:
        return sorted(
            {found.partition("/")[0] for found in self._below(path, {*self._disk.files, *self._disk.folders})}
        )

    def files(self, path: str = "") -> list[str]:
        return sorted(self._below(path, self._disk.files))

    def remove(self, path: str) -> None:
        self._disk.refuse("remove", self._key(path))
        for name in self.files(path):
            del self._disk.files[self._key(f"{path}/{name}")]
        self._disk.files.pop(self._key(path), None)
        self._disk.folders = {known for known in self._disk.folders if not _within(known, self._key(path))}
        self._disk.changed(self._key(path))

    def move(self, path: str, to: str) -> None:
        self._disk.refuse("move", self._key(path))
        old, new = self._key(path), self._key(to)
        assert self._there(path), f"{old} is not there, and can't be renamed"
        assert not self._there(to), f"{new} is there already"
        disk = self._disk
        disk.files = {_moved(name, old, new): content for name, content in disk.files.items()}
        disk.folders = {_moved(name, old, new) for name in disk.folders}
        disk.changed(new)

    def sync(self, path: str) -> None:
        self._disk.refuse("sync", self._key(path))

    def tidy(self) -> None:
        """Every file is there whole or not at all."""

    def _key(self, path: str) -> str:
        return f"{self._root}/{path}".strip("/")

    def _there(self, path: str) -> bool:
        key = self._key(path)
        return key in self._disk.folders or key in self._disk.files or bool(self.files(path))

    def _below(self, path: str, known: set[str] | dict[str, bytes]) -> list[str]:
        prefix = f"{self._key(path)}/" if self._key(path) else ""
        return [name[len(prefix) :] for name in known if name.startswith(prefix)]


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _moved(path: str, old: str, new: str) -> str:
    return new + path[len(old) :] if _within(path, old) else path
