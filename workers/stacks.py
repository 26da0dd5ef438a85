"""Where every thread of a process stands, seen from outside: also when it hangs, holds the GIL, or is stopped.

A rank's process calls `offer()` at its start; whoever is on the same machine may then ask with `stacks_of(pid)`: the
driver's group, or a task that it sends to another node. Two ways: py-spy reads the memory of a process without its
help, where that is permitted; else a signal makes faulthandler write into a file that lives in memory only, so that
nothing is left of it however the process ends.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["offer", "stacks_of", "stacks_of_all", "state_of"]

SPYING = 2.0  # seconds for py-spy
WRITING = 1.0  # seconds for faulthandler
AT_ONCE = 8  # processes that are looked at at the same time
_SIGNAL = signal.SIGUSR2
_NAME = "rankfire-stacks"
_files: list[int] = []  # faulthandler needs its file as long as the process lives


def offer() -> None:
    """Let this process be asked for its stacks; from any thread. Does nothing where files can't live in memory."""
    if not _files and hasattr(os, "memfd_create"):
        _files.append(os.memfd_create(_NAME, os.MFD_CLOEXEC))
        faulthandler.register(_SIGNAL, file=_files[0], all_threads=True)


def stacks_of(pid: int) -> str:
    """The stacks of all threads of a process on this machine; words where they can't be had.

    Args:
        pid: a process that called `offer()`; for another one py-spy alone is tried.

    Example:
        >>> print(stacks_of(1 << 30))
        no stacks of pid 1073741824: it is gone
    """
    state = state_of(pid)
    while state not in {"", "Z"}:
        stopped = state in {"T", "t"}
        if (seen := _spied(pid, stopped) or (None if stopped else _signalled(pid))) is not None:
            return seen
        state, before = state_of(pid), state
        if (state in {"T", "t"}) == stopped:
            return f"no stacks of pid {pid}: {_why(before)}"
    return f"no stacks of pid {pid}: it is gone"


def stacks_of_all(pids: Iterable[int]) -> dict[int, str]:
    """The stacks of several processes, several at a time, by process id."""
    ids = list(pids)
    with ThreadPoolExecutor(AT_ONCE) as looks:
        return dict(zip(ids, looks.map(stacks_of, ids), strict=True))


def state_of(pid: int) -> str:
    """The kernel's letter for a process: R, S, D, T (stopped), Z (gone, not reaped); empty if there is none."""
    with contextlib.suppress(OSError, IndexError):
        letter = _lines(pid, "stat")[0].rpartition(")")[2].split()[0]
        return "Z" if letter == "X" else letter
    return ""


def _spied(pid: int, stopped: bool) -> str | None:
    """What py-spy reads; it stops the process for a moment, unless that is stopped already."""
    beside = Path(sys.executable).with_name("py-spy")
    spy = str(beside) if beside.exists() else shutil.which("py-spy")
    if spy is None:
        return None
    command = [spy, "dump", "--pid", str(pid), *(["--nonblocking"] if stopped else [])]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=SPYING, check=False)
        if done.returncode == 0 and "Thread" in done.stdout:
            return done.stdout
    return None


def _signalled(pid: int) -> str | None:
    """What faulthandler writes on a signal; None if this process does not listen to it, which would end it."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        caught = next(line for line in _lines(pid, "status") if line.startswith("SigCgt:")).split()[1]
        if not int(caught, 16) >> (_SIGNAL - 1) & 1:
            return None
        file = next(fd for fd in Path(f"/proc/{pid}/fd").iterdir() if f"memfd:{_NAME}" in os.readlink(fd))
        before = file.stat().st_size
        os.kill(pid, _SIGNAL)
        _wait_written(file, before)
        with file.open("rb") as written:
            written.seek(before)
            return written.read().decode(errors="replace") or None
    return None


def _wait_written(file: Path, before: int) -> None:
    """Wait until the file has grown and no longer grows."""
    until, last = time.monotonic() + WRITING, before
    while time.monotonic() < until:
        time.sleep(0.02)
        if (size := file.stat().st_size) == last > before:
            return
        last = size


def _lines(pid: int, name: str) -> list[str]:
    return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace").splitlines()


def _why(state: str) -> str:
    if state in {"T", "t"}:
        return "it is stopped (SIGSTOP), and py-spy is missing or not permitted to read it"
    if state == "D":
        return "it is in the kernel, in an uninterruptible wait"
    return "it does not answer the signal, and py-spy is missing or not permitted to read it"
