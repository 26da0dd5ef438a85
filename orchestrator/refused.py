"""A run that is refused before it trains leaves nothing behind, if there was nothing before.

Else the next try, with the mistake mended, would find a run that exists. Used by `training.py`.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator

from orchestrator.errors import FencedError, RankfireError
from orchestrator.lease import FOLDER, Lease
from workers.storage import Storage

__all__ = ["nothing_left_if_refused"]

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


def _remove(root: Storage, run: str) -> None:
    if root.moves:  # in one step: whoever claims the run at this moment must find all of it or nothing
        gone = f"{run}.refused-{uuid.uuid4().hex[:8]}"
        root.move(run, gone)
        root.remove(gone)
        return
    home = root.child(run)
    for name in sorted(home.names(), key=lambda name: name == FOLDER):  # the claim last
        home.remove(name)
