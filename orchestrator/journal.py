"""The run's append-only record: one JSON object a line, in the order in which things happened.

Every line has `event, time, generation, epoch, iteration`; what else an event tells stands beside them. A line is
written whole or not at all, and a torn last line (a power cut) is cut off when the journal is opened again. On an
object store, where nothing can be appended to, it is a row of segments, each rewritten until it is full.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from orchestrator.cluster_events import Payload, WorkerLost
from orchestrator.errors import FencedError
from orchestrator.notice import notice
from workers.failpoints import armed, failpoint
from workers.folder import Folder
from workers.locations import storage_at
from workers.redaction import redact
from workers.storage import Storage

__all__ = ["OF_EVERY_LINE", "Journal", "read_journal"]

NAME = "journal.jsonl"
SEGMENTS = "journal"
SEGMENT = 64 << 10  # bytes after which a new segment begins
OF_EVERY_LINE = frozenset({"event", "time", "generation", "epoch", "iteration"})  # names of fields
HELD = 10_000  # lines that are kept while the storage refuses


class Journal:
    """Append to a run's journal; opened by `start`, closed by `close`, both by the run.

    Args:
        storage: the run's folder.
        owned: called before a line is written; raises if this process does not own the run any more.

    Attributes:
        generation, epoch, iteration: where the run is; kept by who knows, and written into every line.
        begun: whether the ranks were told to train.
    """

    def __init__(self, storage: Storage, owned: Callable[[], None] = lambda: None) -> None:
        self.generation = 0
        self.epoch = 0
        self.iteration = 0
        self.begun = False
        self._storage = storage
        self._owned = owned
        self._sink: _Sink | None = None
        self._held: list[bytes] = []  # lines that the storage did not take yet
        self._dropped = 0  # lines that were too many to be kept
        self._complained = False

    def start(self, token: int = 0) -> None:
        """Open the journal; drop a torn last line.

        Args:
            token: fencing token of its owner: no two owners write to the same segment.
        """
        storage = self._storage
        self._sink = _File(storage.root / NAME) if isinstance(storage, Folder) else _Segments(storage, token)

    def write(self, event: str, **details: object) -> None:
        """Append one line; without a `start`, nothing. What the storage refuses is kept, and tried again later.

        Raises:
            FencedError: this process does not own the run any more.
        """
        if self._sink is None:
            return
        self._held.append(self._line(event, details))
        self._flush()

    def record(self, payload: Payload) -> None:
        """Append what happened to the cluster: the event's name, and all that handlers are told of it.

        Raises:
            FencedError: this process does not own the run any more.
        """
        spare = isinstance(payload, WorkerLost) and payload.rank is None
        name = "SPARE_LOST" if spare else payload.event.key.removeprefix("cluster.")
        self.write(name, **{field.name: getattr(payload, field.name) for field in fields(payload)})

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """What ends a run inside this block, before there is one that could tell, is a line as well."""
        try:
            yield
        except KeyboardInterrupt:
            with suppress(FencedError):
                self.write("RUN_INTERRUPTED")
            raise
        except BaseException as error:
            with suppress(FencedError):
                self.write("RUN_FAILED", error=type(error).__name__, text=str(error))
            raise

    def close(self) -> None:
        """Bring everything to the disk and let go of the file; tell how many lines the storage never took."""
        if self._sink is None:
            return
        try:
            if self._held:
                self._flush()
            if lost := self._dropped + len(self._held):
                notice(f"{lost} of the journal's lines are lost: its storage did not take them")
        finally:
            sink, self._sink, self._held = self._sink, None, []
            sink.close()

    def _line(self, event: str, details: Mapping[str, object]) -> bytes:
        line: dict[str, Any] = {
            "event": event,
            "time": time.time(),
            "generation": self.generation,
            "epoch": self.epoch,
            "iteration": self.iteration,
            **details,
        }
        return (json.dumps(_jsonable(line), allow_nan=False) + "\n").encode()

    def _flush(self) -> None:
        assert self._sink is not None, "the journal is open"
        try:
            self._owned()  # of what was held too: whoever lost the run writes nothing more
            if (told := self._sink.begun_anew()) is not None:
                self._held.insert(0, self._line("JOURNAL_REMOVED", {"text": told}))
                notice(told)
            while self._held:
                self._sink.append(self._held[0])
                del self._held[0]
        except OSError as error:  # a full disk must not end a training that could go on
            self._dropped += max(0, len(self._held) - HELD)
            del self._held[:-HELD]
            if not self._complained:
                notice(f"the journal can't be written: {error.strerror or error}; its lines are kept for later")
            self._complained = True
        else:
            self._complained = False


class _Sink(ABC):
    """Where lines go."""

    @abstractmethod
    def append(self, line: bytes) -> None:
        """Add a line, whole or not at all."""

    def begun_anew(self) -> str | None:
        """Begin anew where what was written was taken away; tells so in words, None if it is there."""
        return None

    @abstractmethod
    def close(self) -> None:
        """No line will follow."""


class _File(_Sink):
    """One file on a disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = self._open()

    def begun_anew(self) -> str | None:
        if os.fstat(self._descriptor).st_nlink:
            return None
        gone, self._descriptor = self._descriptor, self._open()  # what nobody can find any more is written in vain
        os.close(gone)
        return f"{self._path} was removed while the run wrote it: its lines until now are lost, and it begins anew"

    def append(self, line: bytes) -> None:
        size = os.fstat(self._descriptor).st_size
        try:
            if armed("journal.half"):
                self._write(line[: len(line) // 2])
                line = line[len(line) // 2 :]
                failpoint("journal.half")
            self._write(line)
        except OSError:
            os.ftruncate(self._descriptor, size)
            raise

    def close(self) -> None:
        try:
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def _open(self) -> int:
        """Open the file, and drop a torn last line."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            os.ftruncate(descriptor, self._path.read_bytes().rfind(b"\n") + 1)
        return descriptor

    def _write(self, content: bytes) -> None:
        if os.write(self._descriptor, content) < len(content):  # the disk filled up in the middle of it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _Segments(_Sink):
    """Objects named by owner and number."""

    def __init__(self, storage: Storage, token: int) -> None:
        self._storage = storage
        self._token = token
        self._number = 0
        self._content = b""

    def append(self, line: bytes) -> None:
        if len(self._content) > SEGMENT:
            self._number, self._content = self._number + 1, b""
        self._storage.replace(f"{SEGMENTS}/{self._token:08d}-{self._number:06d}.jsonl", self._content + line)
        self._content += line

    def close(self) -> None:
        """Every line is there already."""


def read_journal(path: Path | str) -> Iterator[dict[str, Any]]:
    """The lines of a journal as dictionaries, oldest first.

    Args:
        path: `RUN/journal.jsonl`, as a path or as a URL.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a line is none of a journal's.

    Example:
        >>> [line["event"] for line in read_journal("runs/digits/journal.jsonl")]  # doctest: +SKIP
        ['RUN_STARTED', 'WORKER_JOINED', 'EPOCH_COMPLETED', 'RUN_COMPLETED']
    """
    return map(json.loads, lines_of(path))


def lines_of(path: Path | str) -> list[bytes]:
    """The whole lines of a journal as they are, oldest first.

    Args:
        path: `RUN/journal.jsonl`, as a path or as a URL.

    Raises:
        FileNotFoundError: there is none.
    """
    folder, _, name = os.fspath(path).rpartition("/")
    storage = storage_at(folder or ".")
    if isinstance(storage, Folder):
        content = storage.read(name)
    else:
        segments = storage.names(SEGMENTS)
        if not segments:
            raise FileNotFoundError(f"{path}: there is no journal")
        content = b"".join(storage.read(f"{SEGMENTS}/{segment}") for segment in segments)
    return content.split(b"\n")[:-1]  # what follows the last newline is torn


def _jsonable(value: object) -> object:
    """JSON knows no NaN and no infinity: they become their names. Secrets are masked."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if value is None or isinstance(value, int | float | bool):
        return value
    return redact(str(value))
