"""Storage behind a URL: keys below a prefix of any file system that fsspec knows, such as S3.

Whatever a client library raises leaves here as an `OSError`, which the rest of the code knows how to judge.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from workers.storage import Storage

__all__ = ["Objects"]


class Objects(Storage):
    """Keys below a prefix of any file system that fsspec knows."""

    moves = False

    def __init__(self, url: str, fs: Any = None) -> None:
        self.url = url
        self._fs: Any = fs if fs is not None else _file_system(url)
        self._prefix = str(self._fs._strip_protocol(url)).rstrip("/")

    def child(self, path: str) -> Objects:  # noqa: D102
        return Objects(f"{self.url}/{path}", self._fs)

    def make_folder(self, path: str) -> None:  # noqa: D102
        self.claim(f"{path}/.claim", b"")  # keys have no folders: one key says whose these are

    @contextlib.contextmanager
    def create(self, path: str) -> Iterator[BinaryIO]:  # noqa: D102
        with self._words(path):
            file = self._fs.open(self._key(path), "wb")
            try:
                yield cast(BinaryIO, file)
            except BaseException:
                with contextlib.suppress(Exception):  # an upload that nobody completes is never seen
                    file.discard()
                with contextlib.suppress(Exception):  # else its end would complete it; a plain file can't be told so
                    file.closed = True
                raise
            file.close()

    def claim(self, path: str, content: bytes) -> None:  # noqa: D102
        mark = content or uuid.uuid4().hex.encode()
        with self._words(path):
            try:
                self._fs.pipe_file(self._key(path), mark, mode="create")
            except FileExistsError:
                raise
            except OSError:  # what s3fs makes of "412 precondition failed"; or the answer to a try of ours was lost
                if not self.exists(path):
                    raise
                if self.read(path) != mark:
                    raise FileExistsError(self.locate(path)) from None

    def replace(self, path: str, content: bytes) -> None:  # noqa: D102
        with self._words(path):
            self._fs.pipe_file(self._key(path), content)

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:  # noqa: D102
        with self._words(path), self._fs.open(self._key(path), "rb") as file:
            yield cast(BinaryIO, file)

    def read(self, path: str) -> bytes:  # noqa: D102
        with self._words(path):
            return bytes(self._fs.cat_file(self._key(path)))

    def size(self, path: str) -> int:  # noqa: D102
        with self._words(path):
            found = self._fs.info(self._key(path))
        if found["type"] != "file":
            raise FileNotFoundError(f"{self.locate(path)} is no file")
        return int(found["size"])

    def names(self, path: str = "") -> list[str]:  # noqa: D102
        key = self._key(path)
        self._fs.invalidate_cache()
        with self._words(path):
            try:
                found = self._fs.ls(key, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted({str(name).rstrip("/").rpartition("/")[2] for name in found if str(name).rstrip("/") != key})

    def files(self, path: str = "") -> list[str]:  # noqa: D102
        key = self._key(path)
        self._fs.invalidate_cache()
        with self._words(path):
            found = [str(name) for name in self._fs.find(key)]
        return sorted(name[len(key) + 1 :] for name in found if name.startswith(key + "/"))

    def remove(self, path: str) -> None:  # noqa: D102
        with self._words(path), contextlib.suppress(FileNotFoundError):
            keys = [self._key(f"{path}/{name}") for name in self.files(path)] or [self._key(path)]
            patterns = [key for key in keys if not _GLOB.isdisjoint(key)]  # which `rm` would take for what they match
            if plain := [key for key in keys if key not in patterns]:
                self._fs.rm(plain)
            for key in patterns:
                self._fs.rm_file(key)
        self._fs.invalidate_cache()

    def move(self, path: str, to: str) -> None:  # noqa: D102
        with self._words(path):
            pairs = [(f"{path}/{name}", f"{to}/{name}") for name in self.files(path)]
            if not pairs and self._fs.info(self._key(path))["type"] == "file":
                pairs = [(path, to)]
            for old, new in pairs:
                self._fs.cp_file(self._key(old), self._key(new))
        self.remove(path)

    def sync(self, path: str) -> None:
        """Nothing: a key is durable when its writer has been told so."""

    def tidy(self) -> None:
        """Nothing: a key is there whole or not at all."""

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if path else self._prefix

    @contextlib.contextmanager
    def _words(self, path: str) -> Iterator[None]:
        """Whatever a client library raises becomes an `OSError`, which the rest of the code knows how to judge."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in _CLIENTS:
                raise
            text = f"{self.locate(path)}: {type(error).__name__}: {error}"
            late = any(word in type(error).__name__ for word in ("Timeout", "Connect", "Disconnect", "Payload"))
            raise OSError(errno.ETIMEDOUT if late else errno.EREMOTE, text) from error


_GLOB = set("*?[")
_CLIENTS = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "azure", "fsspec", "s3fs"}


def _file_system(url: str) -> Any:
    """One client a process and protocol: each has connections of its own, and asks anew who it is."""
    protocol = url.partition("://")[0]
    try:
        return _client(protocol, os.getpid())
    except (ValueError, ImportError) as error:
        raise ValueError(f"{url!r}: {error}") from error


@functools.cache
def _client(protocol: str, process: int) -> Any:
    import fsspec

    return fsspec.get_filesystem_class(protocol)(use_listings_cache=False, skip_instance_cache=True)
