"""Writes a rank's frozen share of a checkpoint while training goes on: one thread, at most one share at a time.

That only one is in flight is the driver's doing. Made by `saving.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from workers.locations import storage_at
from workers.parcels import Failure
from workers.retry import retrying
from workers.shards import Frozen, Written

__all__ = ["ShardWriter"]

Told = Callable[[str, "Written | None", "Failure | None"], None]


class ShardWriter:
    """The writing thread of one rank.

    Args:
        told: called on that thread with the folder's URL, and what was written or why it was not.
    """

    def __init__(self, told: Told) -> None:
        self._told = told
        self._thread: threading.Thread | None = None

    def start(self, frozen: Frozen, url: str) -> None:
        """Begin to write; returns at once.

        Args:
            frozen: the share.
            url: the staging folder.
        """
        self.join()
        self._thread = threading.Thread(target=self._write, args=(frozen, url), name="rankfire-save", daemon=True)
        self._thread.start()

    def join(self, timeout: float | None = None) -> None:
        """Wait until nothing is being written."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _write(self, frozen: Frozen, url: str) -> None:
        try:
            storage = storage_at(url)
            written = retrying(f"write a share of {url}", lambda: frozen.write(storage))
        except BaseException as error:  # whatever it was, the driver waits for an answer and decides
            self._told(url, None, Failure.of(error))
        else:
            self._told(url, written, None)
