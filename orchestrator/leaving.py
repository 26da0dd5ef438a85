"""Ending a start that does not end: Ray's own processes are gone, and the driver's thread waits for them inside Ray.

A signal that goes to the whole process group (`timeout`, systemd, Slurm) ends Ray's processes as well. Ray waits for
them for a minute, deaf to signals, and then ends this process by itself. Called by `placement.py` and `training.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import NoReturn

from orchestrator.errors import FencedError, RunInterrupted
from orchestrator.journal import Journal
from orchestrator.lease import Lease
from workers.family import family

__all__ = ["end_rays_processes", "leave"]

STDERR = 2
_RAYS = b"/ray/"  # in the command line of whatever Ray starts


def end_rays_processes() -> None:
    """End what Ray has started below this process, and what that has started, which would outlive it by a minute."""
    for pid in {one for top in filter(_is_rays, family(os.getpid())[1:]) for one in family(top)}:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _is_rays(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return _RAYS in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def leave(run: str, journal: Journal, lease: Lease) -> NoReturn:
    """End this process from another thread, as if the run had been interrupted while it started.

    Args:
        run: its id.
        journal: its record.
        lease: the claim to it, which is given back.
    """
    with contextlib.suppress(FencedError, OSError):
        journal.write("RUN_INTERRUPTED")
        journal.close()
    lease.release()
    end_rays_processes()
    with contextlib.suppress(OSError):
        os.write(STDERR, f"error: run {run!r} was interrupted before it trained; nothing was saved\n".encode())
    os._exit(RunInterrupted.exit_code)
