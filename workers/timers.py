"""A tree of timers: how often something ran and how long it took, printed as a table.

Whoever runs the clock adds to the timers; nothing here reads one. The engine's loop keeps a timer in a local
variable and adds to `seconds` directly, so that timing costs next to nothing when nobody looks.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["Timer"]


class Timer:
    """One line of the table, and the lines below it.

    Attributes:
        name: what is timed.
        count: how often it ran.
        seconds: how long it took in all.
        parts: timers of what happened within, by name.

    Example:
        >>> run = Timer("run")
        >>> run["get batch"].add(0.25)
        >>> run["get batch"].add(0.5)
        >>> run["get batch"].count, run["get batch"].seconds
        (2, 0.75)
    """

    __slots__ = ("count", "name", "parts", "seconds")

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.seconds = 0.0
        self.parts: dict[str, Timer] = {}

    def __getitem__(self, name: str) -> Timer:
        """The part of this name; it is made when first asked for."""
        part = self.parts.get(name)
        if part is None:
            part = self.parts[name] = Timer(name)
        return part

    def add(self, seconds: float, count: int = 1) -> None:
        """Count `count` more runs that took `seconds` together."""
        self.seconds += seconds
        self.count += count

    def reset(self) -> None:
        """Forget all counts, times and parts."""
        self.count = 0
        self.seconds = 0.0
        self.parts.clear()

    def __str__(self) -> str:
        """The tree as a table; shares are of the outermost timer."""
        rows = [*self._rows(0, self.seconds)]
        width = max(len(row[0]) for row in rows)
        head = f"{'section':{width}}{'calls':>10}{'time, s':>12}{'share':>8}{'each, µs':>12}"
        return "\n".join([head, *(f"{name:{width}}{rest}" for name, rest in rows)])

    def _rows(self, depth: int, whole: float) -> Iterator[tuple[str, str]]:
        share = self.seconds / whole if whole else 0.0
        each = self.seconds / self.count * 1e6 if self.count else 0.0
        yield "  " * depth + self.name, f"{self.count:10d}{self.seconds:12.4f}{share:8.1%}{each:12.2f}"
        for part in self.parts.values():
            yield from part._rows(depth + 1, whole)
