"""What a handler can listen to, as values: events, filters on them, and their algebra.

Nothing here knows who listens or who fires. An *expression* is a plain event, a filtered one, or a
combination of both with `|` and `&`; it answers which plain events it is about, whether one firing matches,
and which count it waits for next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from workers.filters import NEVER, Clock, Filter, make_filter

__all__ = [
    "NEVER",
    "AllOf",
    "AnyOf",
    "Event",
    "EventExpression",
    "counts_only",
    "is_counts_only",
    "key_of",
]


class EventExpression:
    """What a handler can be attached to: a plain event, a filtered event, or a combination of both."""

    __slots__ = ()

    def __or__(self, other: EventExpression) -> EventExpression:
        return _combine(AnyOf, self, other)

    def __and__(self, other: EventExpression) -> EventExpression:
        return _combine(AllOf, self, other)

    def bases(self) -> tuple[Event, ...]:
        """The plain events in this expression, each once, in the order they were written."""
        raise NotImplementedError

    def matches(self, base: Event, count: int, engine: object) -> bool:
        """Whether the firing number `count` of `base` is one that this expression asks for."""
        raise NotImplementedError

    def next_count(self, base: Event, count: int) -> int:
        """A count of `base` beyond `count` before which nothing matches; `NEVER` if there is none."""
        raise NotImplementedError

    def bind(self, clock: Clock) -> EventExpression:
        """This expression for one registration: its throttles and timeouts start to run on `clock`."""
        raise NotImplementedError


def key_of(name: object) -> str:
    """The key of an event, given as such or by its name."""
    if isinstance(name, Event):
        return name.key
    if not isinstance(name, str):
        raise TypeError(
            f"Event(name): expected a string or an Event, received {name!r} ({type(name).__name__}); write for example "
            "Event('BACKWARD_STARTED')"
        )
    if not name:
        raise ValueError("Event(name): expected a name, received ''; write for example Event('BACKWARD_STARTED')")
    return name


class Event(EventExpression):
    """A plain event, told apart by its name alone.

    Args:
        name: the name; also the key under which the event is counted, sent and journaled.

    Example:
        >>> Event("WEIGHTS_CLIPPED")(every=10)
        WEIGHTS_CLIPPED(every=10)
    """

    __slots__ = ("key",)

    key: str

    def __init__(self, name: str | Event) -> None:
        object.__setattr__(self, "key", key_of(name))

    @property
    def name(self) -> str:
        """The event's name."""
        return self.key

    def __call__(
        self,
        *,
        every: int | Iterable[int] | None = None,
        once: int | Iterable[int] | None = None,
        before: int | None = None,
        after: int | None = None,
        event_filter: Callable[..., object] | None = None,
        throttle: float | None = None,
        timeout: float | None = None,
    ) -> EventExpression:
        """Filter this event: a new value that matches some of its firings only.

        Give exactly one of `once`, `event_filter`, `throttle`, `timeout`, or any of the group `every`,
        `before`, `after`.

        Args:
            every: counts divisible by this number, or by any of several; together with `after=a` the
                numbering starts at `a + 1`, as in pytorch-ignite: `every=5, after=8` are the counts 9, 14, 19
                and so on.
            once: this count, or each of these.
            before: counts below this one.
            after: counts above this one.
            event_filter: a function `f(engine, count)` that says whether to call the handler.
            throttle: at most once in so many seconds; the first firing passes.
            timeout: only once so many seconds have gone since the handler was attached.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: a number is not positive, or the arguments do not go together.
        """
        made = make_filter(
            repr(self),
            every=every,
            once=once,
            before=before,
            after=after,
            event_filter=event_filter,
            throttle=throttle,
            timeout=timeout,
        )
        return self if made is None else Filtered(self, made)

    def bases(self) -> tuple[Event, ...]:
        """This event itself."""
        return (self,)

    def matches(self, base: Event, count: int, engine: object) -> bool:
        """True for every firing of this very event."""
        return base.key == self.key and count > 0

    def next_count(self, base: Event, count: int) -> int:
        """The very next one."""
        return max(count, 0) + 1 if base.key == self.key else NEVER

    def bind(self, clock: Clock) -> EventExpression:
        """An event without a filter has no clock."""
        return self

    def __setattr__(self, name: str, value: object) -> None:
        if name == "key":
            raise AttributeError(
                f"{self!r}.key: expected a value to stay as it is, received another name, {value!r}; make another Event"
            )
        object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.key,)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Event):
            return self.key == other.key
        return self.key == other if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return self.key

    def __str__(self) -> str:
        return self.key


@dataclass(frozen=True, slots=True, repr=False)
class Filtered(EventExpression):
    """One event and one filter on the counts of its firings."""

    event: Event
    filter: Filter

    def bases(self) -> tuple[Event, ...]:
        """The filtered event."""
        return (self.event,)

    def matches(self, base: Event, count: int, engine: object) -> bool:
        """Whether the filter passes this firing."""
        return base.key == self.event.key and count > 0 and self.filter.passes(count, engine)

    def next_count(self, base: Event, count: int) -> int:
        """The filter's next count."""
        return self.filter.next_count(max(count, 0)) if base.key == self.event.key else NEVER

    def bind(self, clock: Clock) -> EventExpression:
        """The same event with the filter's clock running."""
        return Filtered(self.event, self.filter.bind(clock))

    def __repr__(self) -> str:
        return f"{self.event!r}({self.filter!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Combination(EventExpression):
    """Several expressions joined by one operator; a combination within one of the same kind is flattened."""

    operands: tuple[EventExpression, ...]

    def bases(self) -> tuple[Event, ...]:
        """The plain events of all operands."""
        return tuple(dict.fromkeys(base for operand in self.operands for base in operand.bases()))


class AnyOf(Combination):
    """`a | b`: a firing that matches any operand. All are asked, so that throttles keep their own time."""

    __slots__ = ()

    def matches(self, base: Event, count: int, engine: object) -> bool:
        """Whether any operand matches; none is left unasked."""
        return any([operand.matches(base, count, engine) for operand in self.operands])

    def next_count(self, base: Event, count: int) -> int:
        """The nearest count of all operands."""
        return min(operand.next_count(base, count) for operand in self.operands)

    def bind(self, clock: Clock) -> EventExpression:
        """The same with every operand bound."""
        return AnyOf(tuple(operand.bind(clock) for operand in self.operands))

    def __repr__(self) -> str:
        return " | ".join(repr(operand) for operand in self.operands)


class AllOf(Combination):
    """`a & b`: one firing that matches all operands. Clocks come last: a throttle counts only what passes."""

    __slots__ = ()

    def matches(self, base: Event, count: int, engine: object) -> bool:
        """Whether all operands match; the first that does not ends the asking."""
        return all(operand.matches(base, count, engine) for operand in self.operands)

    def next_count(self, base: Event, count: int) -> int:
        """No count before the farthest of all operands can match."""
        return max(operand.next_count(base, count) for operand in self.operands)

    def bind(self, clock: Clock) -> EventExpression:
        """The same with every operand bound, those that only need counts in front."""
        ordered = sorted(self.operands, key=lambda operand: not is_counts_only(operand))
        return AllOf(tuple(operand.bind(clock) for operand in ordered))

    def __repr__(self) -> str:
        return " & ".join(f"({o!r})" if isinstance(o, AnyOf) else repr(o) for o in self.operands)


def counts_only(expression: EventExpression) -> EventExpression:
    """The same expression with every clock and function taken out, so that counts alone decide.

    The algebra has no negation, so the result matches whenever `expression` does, and perhaps more often. It
    gives the same answer on every rank.
    """
    if isinstance(expression, Combination):
        return type(expression)(tuple(counts_only(operand) for operand in expression.operands))
    if isinstance(expression, Filtered) and not expression.filter.counts_only:
        return expression.event
    return expression


def is_counts_only(expression: EventExpression) -> bool:
    """Whether counts alone decide if `expression` matches: no clock, no function."""
    if isinstance(expression, Combination):
        return all(is_counts_only(operand) for operand in expression.operands)
    return not isinstance(expression, Filtered) or expression.filter.counts_only


def _combine(kind: type[Combination], left: EventExpression, right: object) -> EventExpression:
    if not isinstance(right, EventExpression):
        return NotImplemented  # type: ignore[no-any-return]
    operands: list[EventExpression] = []
    for side in (left, right):
        operands += side.operands if isinstance(side, kind) else (side,)
    return kind(tuple(operands))
