"""What a piece of work left behind on this machine: processes, threads, shared memory, temporary files.

`Footprint.now(...)` is taken before; `left_since(before)` afterwards lists everything that is new, one line
each. Other people's processes on the same machine are not ours and are never listed. Used by the fixtures in
`conftest.py`.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "RANKFIRE_TEST_SESSION"
"""Environment variable that every process started by the test session inherits."""

LIVES_LONGER = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "/weed -logtostderr")
"""Python starts the first two once and keeps them until the interpreter ends; the third is the session's object store,
which sees to its own end."""

LIVES_WITH_THE_CLUSTER = ("_StatsActor", "_AutoscalingCoordinatorActor")
"""Actors that Ray Data starts once in a cluster, detached from whoever used it first."""

KEPT_UNTIL_EXIT = ("pytest-of-", "pymp-", "torchinductor_")
"""Entries of the temporary folder that pytest, multiprocessing and torch keep until they end."""

PYTEST_TIMEOUT = "pytest_timeout "
"""Name of the thread with which pytest-timeout watches a test; it ends with the test."""

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Footprint:
    """The processes, threads and files of this test session at one moment."""

    processes: frozenset[psutil.Process]
    threads: frozenset[threading.Thread]
    files: frozenset[Path]

    @classmethod
    def now(cls, temporary: Path) -> Footprint:
        """Look around; `temporary` is the session's own folder for temporary files."""
        threads = (t for t in threading.enumerate() if not t.daemon and not t.name.startswith(PYTEST_TIMEOUT))
        return cls(
            processes=frozenset(session_processes(temporary)),
            threads=frozenset(threads),
            files=frozenset([*_entries(SHARED_MEMORY), *_own_temporary(temporary)]),
        )


def left_since(before: Footprint, temporary: Path) -> list[str]:
    """One line for each thing that is here now and was not here `before`."""
    now = Footprint.now(temporary)
    processes = [_describe(p) for p in now.processes - before.processes]
    threads = [f"thread {t.name!r} (not a daemon)" for t in now.threads - before.threads if t.is_alive()]
    files = [f"file {path}" for path in sorted(now.files - before.files) if not _belongs_to_others(path, now)]
    return [*sorted(line for line in processes if line), *threads, *files]


def alive_in_ray() -> list[str]:
    """One line for each actor and placement group that still holds, or waits for, resources."""
    import ray
    from ray._private import state

    actors = [
        f"actor {name} {row['ActorClassName']} {row['State']}"
        for name, row in state.actors().items()
        if row["State"] != "DEAD" and row["ActorClassName"] not in LIVES_WITH_THE_CLUSTER
    ]
    groups = [
        f"placement group {name} {row['state']}"
        for name, row in ray.util.placement_group_table().items()
        if row["state"] != "REMOVED"
    ]
    return actors + groups


def session_processes(temporary: Path) -> set[psutil.Process]:
    """Every descendant of this process, and every orphan that one of them left behind.

    An orphan no longer has us among its ancestors. It is known by the mark in its environment, or, since a
    Ray worker overwrites that with its title, by its output going to a file under our folder.
    """
    me = psutil.Process()
    found = set(me.children(recursive=True))
    mark = f"{MARK}={os.environ.get(MARK, '')}".encode()
    for process in psutil.process_iter():
        if process.pid != me.pid and process not in found and _is_marked(process.pid, mark, temporary.parent):
            found.add(process)
    return found


def _is_marked(pid: int, mark: bytes, root: Path) -> bool:
    folder = Path("/proc", str(pid))
    try:
        if mark in (folder / "environ").read_bytes().split(b"\0"):
            return True
        return any(os.readlink(folder / "fd" / fd).startswith(f"{root}/") for fd in "12")
    except OSError:  # gone meanwhile, or somebody else's
        return False


def _describe(process: psutil.Process) -> str:
    try:
        command = " ".join(process.cmdline()) or process.name()
        status = process.status()
    except psutil.ZombieProcess:
        command, status = "?", "zombie"
    except psutil.NoSuchProcess:
        return ""
    if any(name in command for name in LIVES_LONGER):
        return ""
    return f"process {process.pid} ({status}): {command[:300]}"


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _own_temporary(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if not path.name.startswith(KEPT_UNTIL_EXIT)]


def _belongs_to_others(path: Path, now: Footprint) -> bool:
    """Whether a process that is not ours uses this piece of shared memory, or it is gone already."""
    if path.parent != SHARED_MEMORY:
        return False
    if not path.exists():
        return True
    ours = {os.getpid(), *(p.pid for p in now.processes)}
    users = (pid for pid in psutil.pids() if pid not in ours)
    return any(str(path) in _maps(pid) for pid in users)


def _maps(pid: int) -> str:
    try:
        return Path("/proc", str(pid), "maps").read_text()
    except OSError:
        return ""
