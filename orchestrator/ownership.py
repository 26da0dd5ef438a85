"""Whose a run's folder is: a run is not continued in a folder that another user made, or behind a link.

Whoever can write a run's folder decides what its ranks load, and a link decides where they write. Called by
`training.py` before a run is taken.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from orchestrator.errors import SpecError, explain
from workers.folder import Folder
from workers.storage import Storage

__all__ = ["see_whose"]

PARTS = ("", "checkpoints", "lease", "logs", "hangs", "stop")


def see_whose(home: Storage, run: str) -> None:
    """See that what there is of a run is a folder of this user's own.

    Args:
        home: the run's folder; an object store has no links, and rights of its own.
        run: its id, for the error.

    Raises:
        SpecError: it is a link, or another user's.
    """
    if not isinstance(home, Folder):
        return
    for part in PARTS:
        path = home.root / part if part else home.root
        try:
            found = path.lstat()
        except OSError:  # not there; or what is in the way is told when the run is taken
            continue
        if stat.S_ISLNK(found.st_mode):
            received, mend = f"a link, {path}", "give the folder itself its name, or choose another run id"
        elif found.st_uid != os.geteuid() and found.st_uid != _here(home.root.parent):
            received = f"one of user {found.st_uid}, {path}"
            mend = "run it as that user, or choose another run id"
        else:
            continue
        raise SpecError(explain(f"run {run!r}", expected="a folder of your own", received=received, mend=mend))


def _here(folder: Path) -> int | None:
    """As whom this process writes there, which a network file system decides for itself; None: it does not."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".whose-", suffix=".tmp") as file:
            return os.fstat(file.fileno()).st_uid
    except OSError:
        return None
