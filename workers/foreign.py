"""Events of pytorch-ignite as events of ours, told by their shape: ignite's handlers and metrics attach themselves.

ignite is not imported here. Its events have a value, such as "epoch_started", and a filter `f(engine, count)`; its `|`
gives a list of events.
"""

from __future__ import annotations

from functools import reduce
from operator import or_

from workers.events import Event, EventExpression, Events

__all__ = ["as_event"]


def as_event(event: object) -> EventExpression | None:
    """An event of ours that fires when this one would; None if it is no event of ignite either.

    Args:
        event: whatever was given as one.
    """
    several = getattr(event, "_events", None)
    if isinstance(several, list) and several:
        found = [as_event(one) for one in several]
        return None if None in found else reduce(or_, [one for one in found if one is not None])
    value, condition = getattr(event, "value", None), getattr(event, "filter", event)
    if not isinstance(value, str) or condition is event:
        return None
    known = {member.key.lower(): member for member in Events}
    plain = known.get(value, Event(value))
    unfiltered = condition is None or condition is getattr(event, "default_event_filter", None)
    return plain if unfiltered else plain(event_filter=condition)  # type: ignore[arg-type]  # of ignite: f(engine, count)
