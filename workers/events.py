"""The events that an engine fires, and how to name families of your own.

A member of a family is an `Event` like any other: it can be filtered, combined, sent and counted. What can be
done with events is in `expressions.py`.
"""

from __future__ import annotations

from enum import Enum

from workers.expressions import Event, EventExpression, counts_only, is_counts_only, key_of

__all__ = ["Event", "EventEnum", "EventExpression", "Events", "counts_only", "is_counts_only"]


class EventEnum(Event, Enum):
    """A family of events of your own. A member's value, a string or an `Event`, is its key.

    Example:
        >>> class BackpropEvents(EventEnum):
        ...     BACKWARD_STARTED = "backward_started"
        ...     BACKWARD_COMPLETED = Event("BACKWARD_COMPLETED")
    """

    def __new__(cls, value: str | Event) -> EventEnum:  # noqa: D102
        member = object.__new__(cls)
        member._value_ = key_of(value)
        return member

    # Said again, since enum.Enum puts its own ones into a class that does not define them (Python 3.11.2).
    def __repr__(self) -> str:
        return self.key

    def __str__(self) -> str:
        return self.key

    @property
    def name(self) -> str:
        """The name that the member has in its class."""
        return self._name_


class Events(EventEnum):
    """The events that an `Engine` fires by itself."""

    STARTED = "STARTED"
    RESUMED = "RESUMED"
    EPOCH_STARTED = "EPOCH_STARTED"
    GET_BATCH_STARTED = "GET_BATCH_STARTED"
    GET_BATCH_COMPLETED = "GET_BATCH_COMPLETED"
    ITERATION_STARTED = "ITERATION_STARTED"
    ITERATION_COMPLETED = "ITERATION_COMPLETED"
    EPOCH_COMPLETED = "EPOCH_COMPLETED"
    DATALOADER_STOP_ITERATION = "DATALOADER_STOP_ITERATION"
    TERMINATE = "TERMINATE"
    TERMINATE_SINGLE_EPOCH = "TERMINATE_SINGLE_EPOCH"
    INTERRUPT = "INTERRUPT"
    EXCEPTION_RAISED = "EXCEPTION_RAISED"
    COMPLETED = "COMPLETED"
