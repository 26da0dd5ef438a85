"""Who listens to what, in which order: an `EventSource` fires events, counts them, and calls the handlers due.

The engine on a rank is one, the driver's event bus is another. How a handler is called is in `signature.py`,
which of them are due at a count in `listeners.py`.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from workers.events import Event, EventEnum, EventExpression, Events
from workers.filters import Clock
from workers.foreign import as_event
from workers.listeners import PHASES, Listeners, Row
from workers.signature import bind_handler, name_of
from workers.state import Counters, State

__all__ = ["EventSource", "RemovableEventHandle"]

Function = TypeVar("Function", bound=Callable[..., Any])


class RemovableEventHandle:
    """Takes one handler off again; as a context manager, at the end of the block.

    Example:
        >>> source = EventSource()
        >>> with source.add_event_handler(Events.STARTED, print):
        ...     source.has_event_handler(print)
        True
        >>> source.has_event_handler(print)
        False
    """

    def __init__(self, rows: tuple[tuple[Listeners, Row], ...]) -> None:
        self._rows = rows

    def remove(self) -> None:
        """Take the handler off; nothing happens if it is gone already."""
        for listeners, row in self._rows:
            if row.live:
                listeners.remove(row)

    def __enter__(self) -> RemovableEventHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class EventSource:
    """Something that fires events.

    Args:
        subject: what handlers get as their optional first argument; the source itself if not given.
        clock: seconds, monotonic; what `throttle` and `timeout` read.

    Example:
        >>> source = EventSource()
        >>> @source.on(Event("DING")(every=2))
        ... def tell():
        ...     print("every second ding")
        >>> source.fire_event(Event("DING"))
        >>> source.fire_event(Event("DING"))
        every second ding
    """

    def __init__(self, subject: object = None, *, clock: Clock = time.monotonic) -> None:
        self.subject = self if subject is None else subject
        self.state = State()
        self._clock = clock
        self._listeners: dict[str, Listeners] = {}
        self._registered: dict[str, Event] = {}
        self._registrations = 0
        self._record: list[RemovableEventHandle] | None = None

    @property
    def counters(self) -> Counters:
        """How often each event has fired; the same as `state.counters`."""
        return self.state.counters

    @property
    def last_event(self) -> Event | None:
        """The event that fired last; the same as `state.last_event`."""
        return self.state.last_event

    @property
    def last_event_name(self) -> Event | None:
        """The same, as pytorch-ignite calls it."""
        return self.state.last_event

    # ---------------------------------------------------------------- listening
    def add_event_handler(
        self, event: EventExpression | str, handler: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> RemovableEventHandle:
        """Call `handler` whenever `event` fires; once a firing, however many branches of a combination match.

        Args:
            event: an event, filtered or not, or a combination; a string if such an event is known.
            handler: any callable: `handler()`, `handler(engine)`, with `args` and `kwargs` behind. It gets
                the engine if its signature has room for one more argument, be it one with a default; that is
                decided now. Handlers of EXCEPTION_RAISED may take the exception after the engine. What it
                returns is ignored.
            args: passed to every call, after the engine.
            kwargs: passed to every call.

        Returns:
            A handle that takes the handler off again.

        Raises:
            TypeError: `event` is no event, or `handler` can't be called.
            ValueError: a call with these arguments does not fit the handler's signature, or would run nothing of it
                (an asynchronous function, a generator), or a string is unknown.

        Example:
            >>> source = EventSource()
            >>> handle = source.add_event_handler(Events.COMPLETED, print, "done")
        """
        return self._add("user", event, handler, args, kwargs)

    def add_phase_handler(
        self, phase: str, event: EventExpression | str, handler: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> RemovableEventHandle:
        """Like `add_event_handler`, in a phase: of one firing, "metrics" run first, then "user", "decision", "gate".

        Args:
            phase: one of these; "decision" is for what judges by what the others measured, "gate" for what must see
                everything that the others did.
            event: as `add_event_handler`.
            handler: as `add_event_handler`.
            args: passed to every call, after the engine.
            kwargs: passed to every call.

        Raises:
            ValueError: there is no such phase; else as `add_event_handler`.
        """
        if phase not in PHASES:
            raise ValueError(
                f"add_phase_handler(phase): expected one of {', '.join(PHASES)}, received {phase!r}; 'user' is the "
                "one of add_event_handler"
            )
        return self._add(phase, event, handler, args, kwargs)

    def on(self, event: EventExpression | str, *args: Any, **kwargs: Any) -> Callable[[Function], Function]:
        """Decorator: call the function whenever `event` fires. It gives back the function unchanged, so it
        stacks.

        Example:
            >>> source = EventSource()
            >>> @source.on(Events.STARTED)
            ... @source.on(Events.COMPLETED)
            ... def tell(): ...
        """

        def attach(handler: Function) -> Function:
            self.add_event_handler(event, handler, *args, **kwargs)
            return handler

        return attach

    @contextmanager
    def recorded(self) -> Iterator[list[RemovableEventHandle]]:
        """The handles of all that is attached inside this block, for who did not attach it."""
        before, self._record = self._record, []
        try:
            yield self._record
        finally:
            self._record = before

    def has_event_handler(self, handler: Callable[..., Any], event: EventExpression | str | None = None) -> bool:
        """Whether `handler` is attached: to anything, or to a plain event under any filter, or to this."""
        return bool(self._find(handler, event))

    def remove_event_handler(self, handler: Callable[..., Any], event: EventExpression | str) -> None:
        """Take `handler` off a plain event, under any filter, or off this very expression.

        Raises:
            ValueError: it is not attached there.
        """
        found = self._find(handler, event)
        if not found:
            raise ValueError(
                f"remove_event_handler: expected a handler that is attached to {event!r}, received {name_of(handler)}, "
                "which is not; ask has_event_handler(handler, event) first"
            )
        for listeners, row in found:
            listeners.remove(row)

    def register_events(self, *events: str | Event | type[EventEnum]) -> None:
        """Make events known by name, so that strings may stand for them. Events as values need no registration.

        Args:
            events: names, events, or classes of events.
        """
        for item in events:
            members = list(item) if isinstance(item, type) else [item]
            for member in members:
                event = member if isinstance(member, Event | str) else self._plain(member)
                self._registered[Event(event).key] = Event(event)

    def has_registered_events(self, event: Event | str) -> bool:
        """Whether an event may be given by its name: those of the loop, and registered ones."""
        key = event if isinstance(event, str) else self._plain(event).key
        return key in self._registered or any(key == known.key for known in Events)

    def listens(self, event: Event) -> bool:
        """Whether any handler is attached to `event`, whatever its filter."""
        listeners = self._listeners.get(event.key)
        return listeners is not None and bool(listeners.rows)

    # ---------------------------------------------------------------- firing
    def fire_event(self, event: Event | str, *extra: Any) -> None:
        """Count one more firing of `event` and call the handlers that are due.

        Args:
            event: a plain event; a string if such an event is known.
            extra: passed to the handlers that have room for it, after the engine.

        Raises:
            TypeError: `event` is no plain event.
            ValueError: a string is unknown.
        """
        plain = self._plain(event)
        self.dispatch(plain, self._next_count(plain), *extra)

    def dispatch(self, event: Event, count: int, *extra: Any) -> None:
        """Call the handlers due at firing number `count` of `event`, which was counted elsewhere.

        Args:
            event: a plain event.
            count: its number; it may leave numbers out, repeat one, or go back.
            extra: passed to the handlers that have room for it, after the engine.
        """
        listeners = self._listeners.get(event.key)
        if listeners is None:
            self.state.fired[event.key] = count
            self.state.last_event = event
        else:
            listeners.fire(count, *extra)

    def _next_count(self, event: Event) -> int:
        return self.state.fired[event.key] + 1

    # ---------------------------------------------------------------- within
    def _add(
        self,
        phase: str,
        event: EventExpression | str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> RemovableEventHandle:
        expression = self._expression(event)
        order = (PHASES.index(phase), self._registrations)
        bound = expression.bind(self._clock)
        rows = []
        for base in expression.bases():
            handler = bind_handler(function, args, kwargs, base)
            rows.append((self._listeners_of(base), Row(order, expression, bound, handler)))
        for listeners, row in rows:
            listeners.add(row)
        self._registrations += 1
        handle = RemovableEventHandle(tuple(rows))
        if self._record is not None:
            self._record.append(handle)
        return handle

    def _listeners_of(self, event: Event) -> Listeners:
        """The listeners of an event, made when first asked for; they stay the same object."""
        listeners = self._listeners.get(event.key)
        if listeners is None:
            listeners = self._listeners[event.key] = Listeners(self, event)
        return listeners

    def _find(self, function: Callable[..., Any], event: EventExpression | str | None) -> list[tuple[Listeners, Row]]:
        expression = None if event is None else self._expression(event)
        keys = list(self._listeners) if expression is None else [base.key for base in expression.bases()]
        plain = expression is None or isinstance(expression, Event)
        return [
            (listeners, row)
            for listeners in map(self._listeners.get, keys)
            if listeners is not None
            for row in listeners.rows
            if row.handler.function == function and (plain or row.expression == expression)
        ]

    def _expression(self, event: object) -> EventExpression:
        if isinstance(event, EventExpression):
            return event
        if not isinstance(event, str):
            if (theirs := as_event(event)) is not None:
                return theirs
            raise TypeError(
                f"event: expected an event, received {event!r} ({type(event).__name__}); give one such as "
                "Events.COMPLETED"
            )
        known: dict[str, Event] = {member.key: member for member in Events}
        known.update((key, listeners.event) for key, listeners in self._listeners.items())
        known.update(self._registered)
        if event not in known:
            names = {key.lower(): key for key in known}
            near = difflib.get_close_matches(event.lower(), names, n=1)
            hint = f"did you mean {names[near[0]]!r}?" if near else f"register_events({event!r}) makes it known"
            raise ValueError(f"event: expected the name of a known event, received {event!r}; {hint}")
        return known[event]

    def _plain(self, event: object) -> Event:
        expression = self._expression(event)
        if not isinstance(expression, Event):
            raise TypeError(f"fire_event: expected a plain event, received {expression!r}; fire the event in it")
        return expression
