"""A table of where the time went, when training ends: of one engine, or the mean and the slowest of all ranks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from workers.engine import Engine
from workers.events import EventExpression, Events
from workers.handlers.ranks import Ranks
from workers.parcels import TRAINER
from workers.timers import Timer

__all__ = ["Timers", "seconds_of", "table_of"]

Rows = Sequence[tuple[int, str, int, float]]
"""Depth, name, calls and seconds of each line of a tree of timers."""


class Timers:
    """Tell where the time of training went, as a table.

    Args:
        event: when to tell.
        tell: gets the table as text; default: it goes to standard error.

    Attributes:
        table: what was told last.

    Example:
        >>> orchestrator.attach(Timers())  # doctest: +SKIP
    """

    def __init__(
        self, event: EventExpression = Events.COMPLETED, *, tell: Callable[[str], object] | None = None
    ) -> None:
        self.event = event
        self.tell = tell if tell is not None else _to_stderr
        self.table = ""

    def attach(self, target: Engine | Ranks) -> None:
        """Tell at the event."""
        if isinstance(target, Engine):
            target.add_event_handler(self.event, self)
        else:
            target.listen(self.event, self, phase="gate", blocking=True)

    def __call__(self, target: Engine | Ranks) -> None:
        """Tell now."""
        if isinstance(target, Engine):
            self.table = str(target.timers)
        else:
            self.table = table_of(target.call(seconds_of))
        self.tell(self.table + "\n")


def seconds_of(worker: Any) -> Rows:
    """The timers of this rank's trainer; for `orchestrator.call`."""
    return list(_rows(worker.program.engines[TRAINER].timers, 0))


def table_of(ranks: Sequence[Rows]) -> str:
    """One table of all ranks.

    Args:
        ranks: the rows of every rank, in the order of ranks.

    Example:
        >>> print(table_of([[(0, "run", 1, 2.0)], [(0, "run", 1, 4.0)]]))
        section     calls     mean, s  slowest, s    rank
        run         1      3.0000      4.0000       1
    """
    lines = list(dict.fromkeys((depth, name) for rows in ranks for depth, name, _, _ in rows))
    width = max(len("  " * depth + name) for depth, name in lines)
    told = [f"{'section':{width}}{'calls':>10}{'mean, s':>12}{'slowest, s':>12}{'rank':>8}"]
    for line in lines:
        held = [
            (seconds, -rank, calls) for rank, rows in enumerate(ranks) for *at, calls, seconds in rows if (*at,) == line
        ]
        slowest, rank, calls = max(held)
        mean = sum(seconds for seconds, _, _ in held) / len(held)
        told.append(f"{'  ' * line[0] + line[1]:{width}}{calls:10d}{mean:12.4f}{slowest:12.4f}{-rank:8d}")
    return "\n".join(told)


def _rows(timer: Timer, depth: int) -> Iterator[tuple[int, str, int, float]]:
    yield depth, timer.name, timer.count, timer.seconds
    for part in timer.parts.values():
        yield from _rows(part, depth + 1)


def _to_stderr(text: str) -> None:
    sys.stderr.write(text)
