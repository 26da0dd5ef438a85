"""Reading a run's logs: the lines of all its processes, or of some, by time, and further ones as they come.

Files are read in pieces, so that following a log of any size costs what is new. Called by `rankfire logs`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from orchestrator.errors import SpecError, explain
from workers.folder import Folder
from workers.logs import FOLDER, Line
from workers.storage import Storage

__all__ = ["LogReader", "names_of_ranks"]

_RANK = re.compile(r"(rank|spare)-([0-9]+)")


def names_of_ranks(names: list[str]) -> list[int]:
    """The ranks that have logs."""
    return [int(found[2]) for name in names if (found := _RANK.fullmatch(name)) and found[1] == "rank"]


class LogReader:
    """Reads the logs of a run from where it has read them before.

    Args:
        home: the run's folder.
        rank: only this rank's; None: those of all ranks, spares, and the driver.
        driver: only the driver's.

    Raises:
        SpecError: there is no log of that rank.
    """

    def __init__(self, home: Storage, *, rank: int | None = None, driver: bool = False) -> None:
        self._home = home
        self._only = "driver" if driver else None if rank is None else f"rank-{rank:04d}"
        self._read: dict[str, int] = {}  # path → bytes that were given out
        if self._only is not None and self._only not in (names := self.names()):
            ranks = ", ".join(map(str, names_of_ranks(names))) or "none"
            raise SpecError(
                explain(
                    f"logs of {home.url}",
                    expected=f"a rank that has printed something (there are: {ranks})",
                    received="the driver, which has not" if driver else f"rank {rank}",
                    mend="leave --rank out to read all, or wait until it has started (--follow)",
                )
            )

    def names(self) -> list[str]:
        """Names of the logs that there are, such as `driver`, `rank-0003`."""
        return [name.removesuffix(".log") for name in self._home.names(FOLDER)]

    def lines(self) -> Iterator[Line]:
        """What is new, whole lines only, sorted by time."""
        found: list[Line] = []
        for path in self._paths():
            content = self._new(path)
            found += [self._line(path, line) for line in content.split(b"\n")[:-1]]
        yield from sorted(found, key=lambda line: line.time)

    def _paths(self) -> list[str]:
        names = [name for name in self._home.names(FOLDER) if self._only in (None, name.removesuffix(".log"))]
        if isinstance(self._home, Folder):
            return [f"{FOLDER}/{name}" for name in names]
        return [f"{FOLDER}/{name}/{part}" for name in names for part in self._home.names(f"{FOLDER}/{name}")]

    def _new(self, path: str) -> bytes:
        """What was appended since, up to the last whole line."""
        begun = self._read.get(path, 0)
        try:
            if self._home.size(path) <= begun:
                return b""
            with self._home.open(path) as file:
                file.seek(begun)
                content = file.read()
        except FileNotFoundError:  # the run was started anew meanwhile
            return b""
        whole = content[: content.rfind(b"\n") + 1]
        self._read[path] = begun + len(whole)
        return whole

    def _line(self, path: str, content: bytes) -> Line:
        """A line; one that is none of ours is shown as it is."""
        line = Line.read(content)
        if line is not None:
            return line
        name = path.split("/")[1].removesuffix(".log")
        return Line(time=0.0, who=name, stream="out", text=content.decode(errors="replace"))
