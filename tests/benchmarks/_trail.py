"""What every rank of a disturbed training leaves behind: its pid, and each completed iteration with the time.

The rank's side is `Trail`; it needs no torch. The measuring side reads all trails of a folder while they grow, and
computes from them what a fault cost. Times are those of the machine's one monotonic clock.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

Completions = Mapping[tuple[int, int], float]
"""(generation, iteration) → when its last rank had completed it."""


class Step(NamedTuple):
    """One iteration that one rank completed."""

    pid: int
    generation: int  # a number that grows whenever ranks form a group
    rank: int
    world_size: int
    iteration: int
    at: float  # s
    cpu: float  # s of CPU time that the process has taken until then


class Trail:
    """The trail of this process; it is there from now on, also while it has no rank yet."""

    def __init__(self, folder: Path | str) -> None:
        self._file = os.open(Path(folder) / f"{os.getpid()}.trail", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def completed(self, *, generation: int, rank: int, world_size: int, iteration: int) -> None:
        """Note an iteration, at once and for good: whoever is killed later has noted it."""
        line = f"{generation} {rank} {world_size} {iteration} {time.monotonic()} {time.process_time()}\n"
        os.write(self._file, line.encode())


class Trails:
    """All trails of a folder, read on whenever asked.

    Args:
        folder: where the ranks leave their trails.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[Step] = []
        self.processes: dict[int, psutil.Process] = {}  # of every pid that was alive when its trail was first seen
        self._read: dict[int, int] = {}  # bytes, by pid

    def look(self) -> Trails:
        """Read what has been added."""
        for path in self.folder.glob("*.trail"):
            pid = int(path.stem)
            if pid not in self._read:
                self._read[pid] = 0
                if psutil.pid_exists(pid):
                    self.processes[pid] = psutil.Process(pid)
            with open(path, "rb") as file:
                file.seek(self._read[pid])
                text = file.read()
            text = text[: text.rfind(b"\n") + 1]
            self._read[pid] += len(text)
            self.steps += (_step(pid, line) for line in text.decode().splitlines())
        return self

    def ranks(self) -> dict[int, psutil.Process]:
        """The living process of each rank of the newest generation, by rank."""
        newest = max((step.generation for step in self.steps), default=None)
        pids = {step.rank: step.pid for step in self.steps if step.generation == newest}
        return {rank: self.processes[pid] for rank, pid in sorted(pids.items()) if self._alive(pid)}

    def waiting(self) -> list[psutil.Process]:
        """Living processes that have not completed any iteration: spares, and ranks that have just begun."""
        stepped = {step.pid for step in self.steps}
        return [process for pid, process in self.processes.items() if pid not in stepped and self._alive(pid)]

    def _alive(self, pid: int) -> bool:
        process = self.processes.get(pid)
        try:
            return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def _step(pid: int, line: str) -> Step:
    generation, rank, world_size, iteration, at, cpu = line.split()
    return Step(pid, int(generation), int(rank), int(world_size), int(iteration), float(at), float(cpu))


def completions(steps: Iterable[Step]) -> Completions:
    """When each iteration was complete on all ranks of its generation."""
    found: dict[tuple[int, int], dict[int, Step]] = defaultdict(dict)
    for step in steps:
        found[step.generation, step.iteration][step.rank] = step
    return {
        key: max(step.at for step in by_rank.values())
        for key, by_rank in found.items()
        if len(by_rank) == next(iter(by_rank.values())).world_size
    }


class Recovery(NamedTuple):
    """What one fault cost."""

    again: float  # s until an iteration was completed again
    ahead: float  # s until an iteration was completed that had not been before
    lost: int  # iterations that had been completed on all ranks, and were computed again


def recovery(done: Completions, struck: float) -> Recovery | None:
    """From a fault at time `struck`; None as long as training is not ahead of where it was."""
    before = [key for key, at in done.items() if at <= struck]
    generation, reached = max(key[0] for key in before), max(key[1] for key in before)
    after = {key: at for key, at in done.items() if key[0] > generation}
    ahead = [at for (_, iteration), at in after.items() if iteration > reached]
    if not ahead:
        return None
    begun = min(iteration for _, iteration in after)
    return Recovery(min(after.values()) - struck, min(ahead) - struck, max(0, reached + 1 - begun))


def step_times(steps: Iterable[Step]) -> list[float]:
    """Seconds between two iterations in a row of one generation, as completed on all ranks."""
    done = completions(steps)
    return [at - done[g, i - 1] for (g, i), at in sorted(done.items()) if (g, i - 1) in done]


def step_time(steps: Iterable[Step]) -> float:
    """The median of the step times, seconds."""
    return statistics.median(step_times(steps))
