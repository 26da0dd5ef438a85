"""Whether a metric still gets better: the one judgement behind early stopping and plateaus."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from workers.handlers.ranks import choice, number

__all__ = ["Improvement"]


class Improvement:
    """The best value so far, and for how many judgements there has been no better one.

    Args:
        mode: "min" if a smaller value is better, "max" if a greater one is.
        min_delta: by how much it must be better at least.
        call: of whose arguments these are, for errors.

    Raises:
        ValueError: an argument can't be used.

    Example:
        >>> judged = Improvement("min", 0.1)
        >>> [judged.of(value) for value in (1.0, 0.95, 0.8)], judged.best, judged.waited
        ([True, False, True], 0.8, 0)
    """

    def __init__(self, mode: str, min_delta: float = 0.0, *, call: str = "Improvement") -> None:
        self.mode = choice(call, "mode", mode, ("min", "max"))
        self.min_delta = number(call, "min_delta", min_delta, least=0.0)
        self.best: float | None = None
        self.waited = 0

    def of(self, value: float) -> bool:
        """Judge one more value: whether it is the best so far. NaN never is."""
        sign = 1.0 if self.mode == "max" else -1.0
        better = not math.isnan(value) and (self.best is None or sign * (value - self.best) > self.min_delta)
        if better:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return better

    def state_dict(self) -> dict[str, Any]:
        """The best value and how long ago it was."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.best, self.waited = state["best"], state["waited"]
