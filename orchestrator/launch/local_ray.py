"""Around the start of a Ray of our own: whose signals are whose, which process groups it has, who may read its token.

Called by `placement.py`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.launch.access import token_path, warn_of_readers

__all__ = ["out_of_our_group", "own_token", "signals_kept"]


def own_token(environment: Mapping[str, str]) -> None:
    """See that the token of a local Ray is the user's alone: Ray would make one that all of the machine may read.

    Where there is none, one is made where Ray looks for it; of one that was made otherwise, the user is told.

    Args:
        environment: what says whether Ray wants one, and where it is.
    """
    wanted = environment.get("RAY_AUTH_MODE", "token").lower() == "token"
    if not wanted or environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = token_path(environment)
    with contextlib.suppress(OSError):  # no home to write in: Ray itself says so
        if path.exists() and path.read_bytes().strip():
            warn_of_readers(path)
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        ours = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(ours, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with open(descriptor, "w") as file:
                file.write(secrets.token_hex(32))  # as long as Ray's own
            if path.exists():  # and is empty
                path.unlink()
            os.link(ours, path)  # whole, or not at all: another run may start just now, and its token is as good
        finally:
            ours.unlink()


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself and ends the process at once; the run ends it well, also while Ray starts."""
    import ray._private.utils as theirs

    mine = signal.getsignal(signal.SIGTERM)
    take: Any = getattr(theirs, "set_sigterm_handler", None)
    if take is not None:
        theirs.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        if take is not None:
            theirs.set_sigterm_handler = take
        if threading.current_thread() is threading.main_thread() and mine is not None:
            signal.signal(signal.SIGTERM, mine)  # for a Ray that goes another way


@contextlib.contextmanager
def out_of_our_group() -> Iterator[None]:
    """What Ray starts here gets process groups of its own, and dies with this process all the same.

    Else a SIGTERM to our group, as of timeout(1) or a shell, would end the cluster before the run has ended.
    """
    import ray._private.utils as theirs

    tie: Any = getattr(theirs, "set_kill_on_parent_death_linux", None)  # called in each child, before its program

    def tie_and_part() -> None:
        tie()
        os.setpgid(0, 0)

    if tie is not None:
        theirs.set_kill_on_parent_death_linux = tie_and_part
    try:
        yield
    finally:
        if tie is not None:
            theirs.set_kill_on_parent_death_linux = tie
