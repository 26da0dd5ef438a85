"""End training, saved, when its time is over. At the orchestrator all ranks end after one common iteration."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from workers.engine import Engine
from workers.events import Events
from workers.handlers.ranks import Ranks, keep, number, stop, trains_alone

__all__ = ["TimeLimit"]


class TimeLimit:
    """End training after so many seconds.

    Args:
        seconds: how long.
        of: "run": over all starts of the run, by its checkpoints; "start": of this start alone, such as a job's slot.
        clock: seconds, monotonic.

    Raises:
        ValueError: an argument can't be used.

    Example:
        >>> orchestrator.attach(TimeLimit(3 * 3600))  # doctest: +SKIP
    """

    def __init__(
        self,
        seconds: float,
        *,
        of: Literal["run", "start"] = "run",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = number("TimeLimit", "seconds", seconds, least=0.0)
        if of not in ("run", "start"):
            raise ValueError(f"TimeLimit(of): expected 'run' or 'start', received {of!r}; write one of these")
        self.of = of
        self._clock = clock
        self._before = 0.0  # seconds of earlier starts
        self._since: float | None = None
        self._over = False

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return self._before + (0.0 if self._since is None else self._clock() - self._since)

    def attach(self, target: Engine | Ranks) -> None:
        """Look at the clock: after each iteration of an engine; at the orchestrator a few times a second, beside it."""
        if isinstance(target, Engine):
            target.add_event_handler(Events.ITERATION_COMPLETED, self.tick)
            keep(target, self)

    def tick(self, target: Engine | Ranks) -> None:
        """Look at the clock.

        Raises:
            ValueError: several ranks would each decide for themselves.
        """
        if self._since is None:
            trains_alone(target, "TimeLimit")
            self._since = self._clock()
        if not self._over and self.spent >= self.seconds:
            self._over = True
            stop(target, f"the time limit of {self.seconds:g} s is over")

    def state_dict(self) -> dict[str, Any]:
        """The seconds so far."""
        return {"spent": self.spent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._before, self._since = (state["spent"] if self.of == "run" else 0.0), None
