"""A stopwatch that can go on: seconds in which something ran, without those in which it stood."""

from __future__ import annotations

import time

__all__ = ["Stopwatch"]


class Stopwatch:
    """Stands at first.

    Example:
        >>> watch = Stopwatch()
        >>> watch.go()
        >>> watch.stop()
        >>> watch.seconds >= 0.0
        True
    """

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """In which it ran, up to now."""
        return self._before + (0.0 if self._since is None else time.monotonic() - self._since)

    def go(self) -> None:
        """Run from now on."""
        self._before, self._since = self.seconds, time.monotonic()

    def stop(self) -> None:
        """Stand from now on."""
        self._before, self._since = self.seconds, None
