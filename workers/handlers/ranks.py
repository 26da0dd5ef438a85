"""What handlers ask of the rank that they run on: whether others train with it, and how one gets onto all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from workers.engine import Engine
from workers.events import EventExpression
from workers.parcels import TRAINER

__all__ = ["Ranks", "in_step", "interval"]


class Ranks(Protocol):
    """The driver, as far as these handlers know it."""

    def on(self, event: EventExpression | str, *, rank: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator: run a handler on ranks."""
        ...


def in_step(engine: Engine) -> bool:
    """Whether other ranks run the same iterations of this engine: only then may a handler start a collective.

    The trainer's iterations are the same on all ranks; an evaluation may have more batches on one than on another.
    """
    worker = engine.worker
    if worker is None or worker.world_size == 1 or worker.program is None:
        return False
    return worker.program.engines.get(TRAINER) is engine


def interval(call: str, every: object) -> int:
    """See that a handler's interval is one.

    Args:
        call: name of the handler's class, for the error.
        every: iterations between two looks, as the user gave it.

    Raises:
        ValueError: it is no whole number of at least 1.

    Example:
        >>> interval("CheckDivergence", 500)
        500
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(
            f"{call}(every): expected a whole number of iterations of at least 1, received {every!r} "
            f"({type(every).__name__}); write for example every=100"
        )
    return every
