"""What the driver's loop needs of its ranks, whatever carries the words: Ray actors, or a session in this process.

The loop speaks to a `Group`; `group.py` is the one on Ray, `local.py` the one for `workers: 0`. Groups whose workers
speak from other threads keep what comes in an `Inbox`.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from workers.messages import Message
from workers.orders import Order

__all__ = ["Group", "HeadLost", "Inbox", "Incoming", "Interrupt", "LeaseLost", "Lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A worker's stream broke: the process is gone, or can't be reached."""

    worker: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupt:
    """The user pressed Ctrl-C once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLost:
    """Another process has taken the run over.

    Args:
        text: who, in words.
    """

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLost:
    """The head of the cluster does not answer any more.

    Args:
        address: where it was.
        silence: seconds since its last answer.
        left: seconds in which the run should have ended.
    """

    address: str
    silence: float
    left: float


Incoming = Message | Lost | Interrupt | LeaseLost | HeadLost


class Group(Protocol):
    """The workers of a run as one thing."""

    needs_store: bool
    """Whether the ranks are separate processes that must meet at a store."""
    size: int
    """Number of workers, spares included: those started and added, without those killed."""

    def start(self) -> None:
        """Start all workers; each says `Hello` when it is up. Raises `CapacityError` at once if that can't be."""
        ...

    def address(self) -> str:
        """The address of this machine at which the workers reach it."""
        ...

    def shortage(self) -> str | None:
        """If the workers have no places yet: what is free, in words."""
        ...

    def order(self, worker: int, order: Order) -> None:
        """Send an order; returns at once."""
        ...

    def add(self, worker: int, *, avoid: Collection[str] = (), gives_way: bool = False) -> None:
        """Start one more worker; returns at once, and the worker says `Hello` when it is up, or is `Lost`.

        Args:
            worker: its id, which no worker of this group has had before.
            avoid: ids of nodes on which it shall not live.
            gives_way: whether others train while it starts, who need their machine more.
        """
        ...

    def kill(self, worker: int) -> None:
        """End a worker's process now and give its place back; nothing of it is taken any more, no `Lost` either."""
        ...

    def stacks(self, workers: Collection[int]) -> dict[int, str]:
        """The stacks of all threads of these workers' processes, seen from outside; words where that can't be."""
        ...

    def draining(self) -> Mapping[str, float]:
        """Nodes that are about to be taken away: id → seconds left."""
        ...

    def take(self, timeout: float) -> Incoming | None:
        """The next thing that came from any worker, or None after `timeout` seconds."""
        ...

    def interrupt(self) -> None:
        """Put an `Interrupt` among what comes; safe in a signal handler."""
        ...

    def tell(self, came: Incoming) -> None:
        """Put something among what comes; from any thread."""
        ...

    def stop(self, *, grace: float) -> list[str]:
        """End all workers, giving them `grace` seconds to leave by themselves; returns what could not be ended."""
        ...


class Inbox:
    """What came from the workers and is not taken yet; threads meet here.

    Example:
        >>> inbox = Inbox()
        >>> inbox.put(Lost(worker=3, cause="killed"))
        >>> inbox.close(3)
        >>> inbox.take(0) is None
        True
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Incoming] = queue.SimpleQueue()
        self._closed: set[int] = set()

    def put(self, came: Incoming) -> None:
        """Keep what came; from any thread, and from a signal handler."""
        self._queue.put(came)

    def take(self, timeout: float) -> Incoming | None:
        """The next thing that came, or None after `timeout` seconds."""
        until = time.monotonic() + timeout
        while True:
            try:
                came = self._queue.get(timeout=max(until - time.monotonic(), 0.0))
            except queue.Empty:
                return None
            if not isinstance(came, Message | Lost) or came.worker not in self._closed:
                return came

    def close(self, worker: int) -> None:
        """Take nothing of this worker any more, nor what has come of it already."""
        self._closed.add(worker)
