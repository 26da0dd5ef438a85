"""What a process of a run prints, line by line, in the run's folder: `logs/rank-0003.log`, `logs/driver.log`.

Each line tells when it was printed, by whom, and on which stream; none is merged with a similar one of another rank,
and each is written at once, so that a killed process has told all its whole lines. On an object store, where nothing is
appended, lines go there every other second. What libraries print past Python's streams stays in Ray's own logs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, TextIO

from workers.folder import Folder
from workers.locations import storage_at
from workers.redaction import redact
from workers.storage import Storage

__all__ = ["FOLDER", "Form", "Line", "LineLog", "LogPlace", "Tee"]

Form = Literal["plain", "json"]

FOLDER = "logs"
LONGEST = 64 << 10  # characters of a line; a longer one is told in pieces
HELD = 10_000  # lines kept before it is known whose they are, or while the storage refuses
EVERY = 2.0  # seconds between two writes to an object store
SEGMENT = 256 << 10  # bytes of an object; the next lines begin another one
_STYLE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")  # colours and cursor moves of terminals
_PLAIN = re.compile(r"(?P<time>\S+Z) (?P<who>\w+(?: \d+)?) (?P<stream>out|err) \| (?P<text>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPlace:
    """Where lines go.

    Args:
        home: path or URL of the run's folder.
        form: "plain" for people, "json" for machines: one object a line.
    """

    home: str
    form: Form = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One printed line.

    Args:
        time: seconds since 1970.
        who: `driver`, or such as `rank 3`.
        stream: "out" or "err".
        text: without its end.
    """

    time: float
    who: str
    stream: str
    text: str

    def written(self, form: Form) -> bytes:
        """The line as it stands in a file."""
        if form == "json":
            content = {"time": self.time, "who": self.who, "stream": self.stream, "text": self.text}
            return (json.dumps(content) + "\n").encode()
        when = datetime.fromtimestamp(self.time, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return f"{when} {self.who} {self.stream} | {self.text}\n".encode(errors="backslashreplace")

    @classmethod
    def read(cls, content: bytes) -> Line | None:
        """Read a line back, of either form; None if it is neither, as one that a power cut tore."""
        text = content.decode(errors="replace").rstrip("\n")
        try:
            if text.startswith("{"):
                given = json.loads(text)
                return cls(**{name: given[name] for name in ("time", "who", "stream", "text")})
            if (match := _PLAIN.fullmatch(text)) is None:
                return None
            when = datetime.strptime(match["time"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
            return cls(time=when.timestamp(), who=match["who"], stream=match["stream"], text=match["text"])
        except (ValueError, KeyError, TypeError):
            return None


class LineLog:
    """Takes lines and writes them to the file of whoever this process is.

    Args:
        place: where lines go.
        name: of the file, such as `rank-0003`; None: not known yet, lines are kept until it is.
        who: the same in words.
    """

    def __init__(self, place: LogPlace, name: str | None = None, who: str = "") -> None:
        self._place = place
        self._lock = threading.RLock()  # a signal's handler may print in the middle of a print
        self._held: deque[tuple[float, str, str]] = deque(maxlen=HELD)
        self._name: str | None = None
        self._who = who
        self._sink: _File | _Objects | None = None
        if name is not None:
            self.belong_to(name, who)

    def belong_to(self, name: str, who: str) -> None:
        """From now on lines are of this file's; those that were kept as well."""
        with self._lock:
            if name == self._name:
                return
            if self._sink is not None:
                self._sink.close()
            self._name, self._who = name, who
            self._sink = _sink(storage_at(self._place.home), f"{FOLDER}/{name}")
            while self._held:
                self._write(*self._held.popleft())

    def take(self, stream: str, text: str) -> None:
        """Take one line that was printed just now."""
        text = redact(_STYLE.sub("", text).rpartition("\r")[2])
        with self._lock:
            if self._sink is None:
                self._held.append((time.time(), stream, text))
            else:
                self._write(time.time(), stream, text)

    def close(self) -> None:
        """Write what is left and let go; later lines go nowhere."""
        with self._lock:
            if self._sink is not None:
                self._sink.close()
            self._sink = None
            self._held.clear()

    def _write(self, when: float, stream: str, text: str) -> None:
        assert self._sink is not None, "it is known whose lines these are"
        self._sink.append(Line(time=when, who=self._who, stream=stream, text=text).written(self._place.form))


class Tee:
    """A text stream that passes everything on, and gives its whole lines to a log.

    Args:
        stream: where text went before; None, as Python has it for a closed descriptor: nowhere.
        name: "out" or "err".
        log: takes the lines.

    Attributes:
        passes: whether a line goes into the log.
    """

    def __init__(self, stream: TextIO | None, name: str, log: LineLog) -> None:
        self.passes: Callable[[str], bool] = lambda text: True
        self.stream = stream
        self._name = name
        self._log = log
        self._begun = ""

    def write(self, text: str) -> int:
        """Pass text on; the lines that it completes are logged."""
        count = len(text) if self.stream is None else self.stream.write(text)
        *whole, self._begun = (self._begun + text).split("\n")
        for line in whole:
            self._tell(line)
        while len(self._begun) > LONGEST:
            self._tell(self._begun[:LONGEST])
            self._begun = self._begun[LONGEST:]
        return count

    def flush(self) -> None:
        """Pass it on; a line that is not complete waits for its end."""
        if self.stream is not None:
            self.stream.flush()

    def finish(self) -> None:
        """Log what was printed without an end of line."""
        rest, self._begun = self._begun, ""
        if rest:
            self._tell(rest)

    def isatty(self) -> bool:
        """Whether text goes to a terminal."""
        return self.stream is not None and self.stream.isatty()

    def writable(self) -> bool:
        """Always."""
        return True

    def _tell(self, line: str) -> None:
        if self.passes(line):
            self._log.take(self._name, line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["stream"], name)

    def __iter__(self) -> Iterator[str]:
        raise OSError("not readable")


def _sink(storage: Storage, path: str) -> _File | _Objects:
    return _File(storage, f"{path}.log") if isinstance(storage, Folder) else _Objects(storage, path)


class _File:
    """A file on a disk; each line is appended whole, so that two processes of one rank do not tear each other's."""

    def __init__(self, storage: Folder, path: str) -> None:
        self._descriptor: int | None = None
        whole = storage.root / path
        with contextlib.suppress(OSError):  # a log that can't be written is no reason to end a training
            whole.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(whole, flags, 0o600)

    def append(self, line: bytes) -> None:
        """Write a line."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.write(self._descriptor, line)

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class _Objects:
    """A row of objects, `logs/rank-0003/BEGAN-PID-NUMBER.log`, each written again until it is full."""

    def __init__(self, storage: Storage, path: str) -> None:
        self._storage = storage
        self._name = f"{path}/{time.time_ns() // 1_000_000:013d}-{os.getpid()}"
        self._number = 0
        self._content = b""
        self._written = 0
        self._ended = threading.Event()
        self._turn = threading.Lock()
        self._thread = threading.Thread(target=self._keep_writing, name="rankfire-log", daemon=True)
        self._thread.start()

    def append(self, line: bytes) -> None:
        """Take a line, which is written within a moment."""
        with self._turn:
            self._content += line

    def close(self) -> None:
        """Write what is left."""
        self._ended.set()
        self._thread.join(timeout=10.0)
        self._write()

    def _keep_writing(self) -> None:
        while not self._ended.wait(EVERY):
            self._write()

    def _write(self) -> None:
        with self._turn, contextlib.suppress(OSError):
            if len(self._content) > self._written:
                self._storage.replace(f"{self._name}-{self._number:06d}.log", self._content)
                self._written = len(self._content)
            if len(self._content) > SEGMENT:
                self._content, self._written, self._number = b"", 0, self._number + 1
