"""A run that is refused before it trains leaves nothing behind, if there was nothing before.

Else the next try, with the mistake mended, would find a run that exists. Used by `training.py`.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.errors import FencedError, RankfireError, explain
from orchestrator.lease import FOLDER, Lease
from workers.storage import Storage

__all__ = ["in_the_way", "nothing_left_if_refused"]

_BEGUN = {FOLDER, "spec.yaml", "journal", "journal.jsonl", "logs", "stop"}  # what a run has that has not trained


@contextlib.contextmanager
def nothing_left_if_refused(root: Storage, run: str, lease: Lease, trained: Callable[[], bool]) -> Iterator[None]:
    """Around all that a run does, its start and its taking included.

    Args:
        root: the storage in which runs have their folders.
        run: the run's id.
        lease: the claim to it; while it is held nobody else touches the folder.
        trained: whether the run has done anything that is worth its record.
    """
    home = root.child(run)
    try:
        new = set(home.names()) <= _BEGUN and not home.files()  # an object store may name folders that are gone
    except OSError:  # who takes the run will be told
        new = False
    try:
        yield
    except RankfireError as error:
        with contextlib.suppress(FencedError, OSError):
            if error.refusal and new and lease.token and not trained() and set(home.names()) <= _BEGUN:
                lease.withdraw(lambda: _remove(root, run))
        raise


def in_the_way(home: Storage, error: OSError) -> str:
    """Why a run's folder can't be written, in words, with what lies where a file or folder of the run belongs.

    Args:
        home: the run's folder.
        error: what the storage said.
    """
    path = None if error.filename is None else Path(os.fsdecode(error.filename))
    expected = received = ""
    if path is not None and isinstance(error, IsADirectoryError):
        expected, received = "a file", "a folder"
    elif path is not None and isinstance(error, FileNotFoundError) and path.is_symlink():
        expected, received = "a file", f"a link to {path.readlink()}, which is not there"
    elif path is not None and isinstance(error, NotADirectoryError):
        files = [above for above in (path, *path.parents) if above.is_file()]
        if files:
            path, expected, received = files[0], "a folder", "a file"
    if not expected:
        return f"storage: {home.url} can't be written: {error.strerror or error}"
    return explain(
        f"storage: {path}", expected=expected, received=received, mend="move it away, or take another run id"
    )


def _remove(root: Storage, run: str) -> None:
    if root.moves:  # in one step: whoever claims the run at this moment must find all of it or nothing
        gone = f"{run}.refused-{uuid.uuid4().hex[:8]}"
        root.move(run, gone)
        root.remove(gone)
        return
    home = root.child(run)
    for name in sorted(home.names(), key=lambda name: name == FOLDER):  # the claim last
        home.remove(name)
