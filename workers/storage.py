"""Where a run's files lie, as one small set of verbs; both sides use them.

A folder (`folder.py`) can do two things that an object store (`objects.py`) can't: rename a folder in one step, and
append. An object store has a third: whoever writes a key first can be told that they are first. What is committed how
is said in `orchestrator/checkpoints/registry.py`. Paths are relative to the root, with slashes.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import BinaryIO

__all__ = ["Storage"]


class Storage(ABC):
    """Files below one root.

    Attributes:
        url: the root, as it is written in a job file.
        moves: whether a whole folder can be renamed in one step.
    """

    url: str
    moves: bool

    @abstractmethod
    def child(self, path: str) -> Storage:
        """The storage whose root is a folder of this one."""

    @abstractmethod
    def make_folder(self, path: str) -> None:
        """Make a folder, and those above it.

        Raises:
            FileExistsError: it is there: somebody else was first.
        """

    @abstractmethod
    def create(self, path: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """Write a file; at the end of the block it is durable. After an exception it may be there in part."""

    @abstractmethod
    def claim(self, path: str, content: bytes) -> None:
        """Write a small file that must not be there yet.

        Raises:
            FileExistsError: somebody else was first.
        """

    @abstractmethod
    def replace(self, path: str, content: bytes) -> None:
        """Write a small file whole: a reader sees the old content or the new one."""

    @abstractmethod
    def open(self, path: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """Read a file; what is given can seek.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def size(self, path: str) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def names(self, path: str = "") -> list[str]:
        """Names of what lies in a folder, sorted; empty if there is no such folder.

        An object store may go on naming a folder for a while after the last file in it is gone.
        """

    @abstractmethod
    def files(self, path: str = "") -> list[str]:
        """Paths of all files below a folder, relative to it, sorted."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing happens if it is not there."""

    @abstractmethod
    def move(self, path: str, to: str) -> None:
        """Give a file or folder another name. Where `moves` is false, it is copied file by file, then removed."""

    @abstractmethod
    def sync(self, path: str) -> None:
        """Make what was created, renamed or removed in a folder durable."""

    @abstractmethod
    def tidy(self) -> None:
        """Remove, right below the root, what a writer left that died in the middle of a small file.

        Nothing happens where a file is there whole or not at all. Nobody else may be writing such files there.
        """

    def read(self, path: str) -> bytes:
        """A small file's content.

        Raises:
            FileNotFoundError: there is none.
        """
        with self.open(path) as file:
            return file.read()

    def exists(self, path: str) -> bool:
        """Whether there is a file of that name."""
        try:
            self.size(path)
        except FileNotFoundError:
            return False
        return True

    def locate(self, path: str) -> str:
        """A path as a user would write it."""
        return f"{self.url}/{path}" if path else self.url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"
