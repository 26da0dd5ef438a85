"""The handlers of one event, compiled: at a count at which none is due, one comparison says so.

`due` is the first count at which `fire` has anything to do. Behind it are the handlers that may run at any
count and a heap of those that wait for one. Any change, and any step back, lets the next firing compile anew.
"""

from __future__ import annotations

import bisect
import heapq
import operator
from typing import Any, Protocol

from workers.expressions import NEVER, AnyOf, Event, EventExpression, counts_only
from workers.signature import Handler
from workers.state import State

__all__ = ["PHASES", "Listeners", "Row", "Source"]

PHASES = ("metrics", "user", "decision", "gate")
_IN_ORDER = operator.attrgetter("order")


class Source(Protocol):
    """What fires: where it counts, and what its handlers get as their first argument."""

    state: State
    subject: object


class Row:
    """One handler under one event.

    Attributes:
        order: its place in the order of calls: phase, then registration.
        expression: what the user attached it to.
        condition: the same with its clocks running; None if every firing matches.
        counts: the same by counts alone; tells which count to wait for.
        live: False once it has been removed.
    """

    __slots__ = ("condition", "counts", "expression", "handler", "live", "order")

    def __init__(
        self, order: tuple[int, int], expression: EventExpression, bound: EventExpression, handler: Handler
    ) -> None:
        self.order = order
        self.expression = expression
        self.condition = None if isinstance(expression, Event) else bound
        self.counts = counts_only(expression)
        self.handler = handler
        self.live = True


class Listeners:
    """Who listens to one event of one source.

    Attributes:
        due: the first count at which `fire` must be called; before it, it need not be.
        rows: the handlers in the order of calls.
    """

    __slots__ = ("_always", "_armed", "_heap", "_order", "due", "event", "rows", "source")

    def __init__(self, source: Source, event: Event) -> None:
        self.source = source
        self.event = event
        self.rows: list[Row] = []
        self.due = NEVER
        self._armed = NEVER  # the count up to which the heap is up to date; NEVER: compile at the next firing
        self._order: tuple[Row, ...] = ()
        self._always: tuple[Row, ...] = ()
        self._heap: list[tuple[int, int]] = []

    def add(self, row: Row) -> None:
        """Put a handler in its place; it first runs at the next firing."""
        bisect.insort(self.rows, row, key=_IN_ORDER)
        self.rearm()

    def remove(self, row: Row) -> None:
        """Take a handler out; a firing in progress will not call it any more."""
        row.live = False
        self.rows.remove(row)
        self.rearm()

    def rearm(self) -> None:
        """Compile at the next firing, whatever its count; after a change, and when counts may go back."""
        self._armed = NEVER
        self.due = 0 if self.rows else NEVER

    def fire(self, count: int, *extra: Any) -> bool:
        """Call the handlers due at firing number `count`, in order; whether there may have been any."""
        event, state, subject = self.event, self.source.state, self.source.subject
        state.fired[event.key] = count
        state.last_event = event
        candidates = self._candidates(count)
        for row in candidates:
            if row.live and (row.condition is None or row.condition.matches(event, count, subject)):
                state.last_event = event  # again: the handler before may have fired something else
                if extra:
                    row.handler.call_with(subject, extra)
                else:
                    row.handler.call(subject)
        return bool(candidates)

    def fire_all(self, count: int, *extra: Any) -> list[Exception]:
        """Like `fire`, but a handler that raises does not stop the others; gives what was raised."""
        event, state, subject = self.event, self.source.state, self.source.subject
        state.fired[event.key] = count
        raised = []
        for row in self._candidates(count):
            state.last_event = event
            try:
                if row.live and (row.condition is None or row.condition.matches(event, count, subject)):
                    row.handler.call_with(subject, extra)
            except Exception as error:
                raised.append(error)
        return raised

    def _candidates(self, count: int) -> tuple[Row, ...] | list[Row]:
        """The handlers that may be due at `count`, in order; arms `due` for the counts beyond."""
        if count <= self._armed:
            self._arm(count - 1)
        self._armed = count
        heap, order = self._heap, self._order
        found: tuple[Row, ...] | list[Row] = self._always
        if heap and heap[0][0] <= count:
            found = list(found)
            while heap[0][0] <= count:
                row = order[heap[0][1]]
                found.append(row)
                heapq.heapreplace(heap, (row.counts.next_count(self.event, count), heap[0][1]))
            found.sort(key=_IN_ORDER)
        self.due = count + 1 if self._always else heap[0][0] if heap else NEVER
        return found

    def _arm(self, count: int) -> None:
        """Sort the handlers into those that any firing beyond `count` may concern, and those that wait."""
        event = self.event
        self._order = tuple(self.rows)
        waits = [(row.counts.next_count(event, count), index) for index, row in enumerate(self._order)]
        always = {index for index, row in enumerate(self._order) if _every_time(row.counts, event)}
        self._always = tuple(self._order[index] for index in sorted(always))
        self._heap = [wait for wait in waits if wait[1] not in always]
        heapq.heapify(self._heap)


def _every_time(counts: EventExpression, event: Event) -> bool:
    """Whether counts alone never rule a firing out. A wrong no costs time only."""
    return counts == event or (isinstance(counts, AnyOf) and event in counts.operands)
