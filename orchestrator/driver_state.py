"""The driver's state of an engine: a `State` whose place in training is what the ranks say, and nobody else.

Checkpoints are named and judged by it, so a handler that assigned to it would falsify them. Made by `bus.py`.
"""

from __future__ import annotations

from typing import Any

from orchestrator.wording import explain
from workers.state import State

__all__ = ["DriverState"]

_PLACE = frozenset({"iteration", "epoch", "epoch_length"})
_GOAL = frozenset({"max_epochs", "max_iters"})


class DriverState(State):
    """Where the ranks are, their reduced metrics and outputs, and whatever handlers hang on it.

    Example:
        >>> state = DriverState()
        >>> state.stand(iteration=8, epoch=2)
        >>> state.iteration
        8
        >>> state.epoch = 5
        Traceback (most recent call last):
        ...
        AttributeError: run.state.epoch: expected what the ranks say, received 5; assign to an attribute of another name
    """

    __slots__ = ()

    def stand(self, **place: int | None) -> None:
        """Take over where the ranks are, or how far they shall train.

        Args:
            place: `iteration`, `epoch`, `epoch_length`, `max_epochs` and `max_iters`, or some of them.
        """
        for name, value in place.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _PLACE | _GOAL and self._has_begun(name):
            expected = "what the ranks say" if name in _PLACE else "what run() was given"
            mend = "assign to an attribute of another name"
            if name in _GOAL:
                mend = "give it to run(), or end training before it with run.terminate()"
            raise AttributeError(explain(f"run.state.{name}", expected=expected, received=repr(value), mend=mend))
        super().__setattr__(name, value)

    def _has_begun(self, name: str) -> bool:
        """Whether an attribute has its first value."""
        try:
            object.__getattribute__(self, name)
        except AttributeError:
            return False
        return True
