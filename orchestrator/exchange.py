"""What the driver's loop needs of its ranks, whatever carries the words: Ray actors, or a session in this process.

The loop speaks to a `Group`; `group.py` is the one on Ray, `local.py` the one for `workers: 0`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from workers.messages import Message
from workers.orders import Order

__all__ = ["Group", "Incoming", "Interrupt", "LeaseLost", "Lost"]


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


Incoming = Message | Lost | Interrupt | LeaseLost


class Group(Protocol):
    """The workers of a run as one thing."""

    needs_store: bool
    """Whether the ranks are separate processes that must meet at a store."""
    size: int
    """Number of workers, spares included."""

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
