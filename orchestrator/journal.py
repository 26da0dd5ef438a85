"""The run's append-only record: one JSON object a line, in the order in which things happened.

Every line has `event, time, generation, epoch, iteration`; what else an event tells stands beside them. A line is
written whole or not at all, and a torn last line (a power cut) is cut off when the journal is opened again.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Journal", "read_journal"]


class Journal:
    """Append to a run's journal; opened by `start`, closed by `close`, both by the run.

    Args:
        path: the file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.generation = 0
        self.epoch = 0
        self.iteration = 0
        self._descriptor: int | None = None

    def start(self) -> None:
        """Open the file for appending, as its only writer; drop a torn last line.

        Raises:
            BlockingIOError: another process writes it.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            whole = self.path.read_bytes().rfind(b"\n") + 1
            os.ftruncate(descriptor, whole)
        self._descriptor = descriptor

    def write(self, event: str, **fields: object) -> None:
        """Append one line; without a `start`, nothing."""
        if self._descriptor is None:
            return
        line: dict[str, Any] = {
            "event": event,
            "time": time.time(),
            "generation": self.generation,
            "epoch": self.epoch,
            "iteration": self.iteration,
            **fields,
        }
        os.write(self._descriptor, (json.dumps(_jsonable(line), allow_nan=False) + "\n").encode())

    def close(self) -> None:
        """Bring everything to the disk and let go of the file."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None


def read_journal(path: Path | str) -> Iterator[dict[str, Any]]:
    """The lines of a journal as dictionaries, oldest first.

    Example:
        >>> [line["event"] for line in read_journal("runs/digits/journal.jsonl")]  # doctest: +SKIP
        ['RUN_STARTED', 'WORKER_JOINED', 'EPOCH_COMPLETED', 'RUN_COMPLETED']
    """
    with Path(path).open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


def _jsonable(value: object) -> object:
    """JSON knows no NaN and no infinity: they become their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
