"""Filters: which firings of an event, told by their number, by a function, or by a clock.

Filters are values: comparable, hashable, as picklable as the functions in them. Only a filter bound to a
clock, which belongs to one registration of a handler, has a memory. `make_filter` checks a user's arguments.
"""

from __future__ import annotations

import inspect
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["NEVER", "Clock", "Every", "Filter", "Once", "Throttle", "Timeout", "Where", "make_filter"]

Clock: TypeAlias = Callable[[], float]
NEVER = 1 << 62


class Filter(ABC):
    """Passes some of an event's firings, which are counted from 1."""

    __slots__ = ()

    counts_only = False

    @abstractmethod
    def passes(self, count: int, engine: object) -> bool:
        """Whether firing number `count` passes."""

    def next_count(self, count: int) -> int:
        """A number beyond `count` before which no firing passes; `NEVER` if none ever will."""
        return count + 1

    def bind(self, clock: Clock) -> Filter:
        """This filter for one registration."""
        return self


@dataclass(frozen=True, slots=True, repr=False)
class Every(Filter):
    """Counts divisible by any of `numbers`, numbered from `after + 1` if given, and below `before`."""

    numbers: tuple[int, ...]
    before: int | None = None
    after: int | None = None

    counts_only = True

    def passes(self, count: int, engine: object) -> bool:
        """Whether `count` is in the window and on the grid."""
        if self.before is not None and count >= self.before:
            return False
        if self.after is None:
            return any(count % number == 0 for number in self.numbers)
        return count > self.after and any((count - self.after - 1) % number == 0 for number in self.numbers)

    def next_count(self, count: int) -> int:
        """The next point of the grid, or `NEVER` beyond the window."""
        start = 0 if self.after is None else self.after + 1
        if self.after is not None and count <= self.after:
            due = start
        else:
            due = min(start + ((count - start) // number + 1) * number for number in self.numbers)
        return due if self.before is None or due < self.before else NEVER

    def __repr__(self) -> str:
        parts = [] if self.numbers == (1,) else [f"every={_plain(self.numbers)}"]
        parts += [f"before={self.before}"] if self.before is not None else []
        parts += [f"after={self.after}"] if self.after is not None else []
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, repr=False)
class Once(Filter):
    """Exactly these counts."""

    numbers: tuple[int, ...]

    counts_only = True

    def passes(self, count: int, engine: object) -> bool:
        """Whether `count` is one of them."""
        return count in self.numbers

    def next_count(self, count: int) -> int:
        """The smallest of them beyond `count`."""
        return min((number for number in self.numbers if number > count), default=NEVER)

    def __repr__(self) -> str:
        return f"once={_plain(self.numbers)}"


@dataclass(frozen=True, slots=True, repr=False)
class Where(Filter):
    """Firings for which `function(engine, count)` is true."""

    function: Callable[..., object]

    def passes(self, count: int, engine: object) -> bool:
        """Ask the function."""
        return bool(self.function(engine, count))

    def __repr__(self) -> str:
        return f"event_filter={getattr(self.function, '__qualname__', self.function)}"


@dataclass(frozen=True, slots=True, repr=False)
class Throttle(Filter):
    """At most one firing in so many seconds."""

    seconds: float

    def passes(self, count: int, engine: object) -> bool:
        """Can't be told without a clock: bind the expression first."""
        raise TypeError(f"{self!r} has no clock yet: ask expression.bind(clock).matches(...)")

    def bind(self, clock: Clock) -> Filter:
        """A throttle that remembers when it last passed."""
        return RunningThrottle(self.seconds, clock)

    def __repr__(self) -> str:
        return f"throttle={self.seconds:g}"


@dataclass(frozen=True, slots=True, repr=False)
class Timeout(Filter):
    """Firings later than so many seconds after the handler was attached."""

    seconds: float

    def passes(self, count: int, engine: object) -> bool:
        """Can't be told without a clock: bind the expression first."""
        raise TypeError(f"{self!r} has no clock yet: ask expression.bind(clock).matches(...)")

    def bind(self, clock: Clock) -> Filter:
        """A timeout that starts now."""
        return RunningTimeout(self.seconds, clock)

    def __repr__(self) -> str:
        return f"timeout={self.seconds:g}"


class RunningThrottle(Filter):
    """A throttle with its clock; a copy starts anew, as another process's clock can't be compared."""

    __slots__ = ("clock", "last", "seconds")

    def __init__(self, seconds: float, clock: Clock) -> None:
        self.seconds = seconds
        self.clock = clock
        self.last = -math.inf

    def passes(self, count: int, engine: object) -> bool:
        """Whether enough time has gone since this last said yes."""
        now = self.clock()
        if now - self.last < self.seconds:
            return False
        self.last = now
        return True

    def __reduce__(self) -> tuple[object, ...]:
        return RunningThrottle, (self.seconds, self.clock)


class RunningTimeout(Filter):
    """A timeout with its clock; a copy starts anew, as another process's clock can't be compared."""

    __slots__ = ("clock", "seconds", "start")

    def __init__(self, seconds: float, clock: Clock) -> None:
        self.seconds = seconds
        self.clock = clock
        self.start = clock()

    def passes(self, count: int, engine: object) -> bool:
        """Whether the time is over."""
        return self.clock() - self.start >= self.seconds

    def __reduce__(self) -> tuple[object, ...]:
        return RunningTimeout, (self.seconds, self.clock)


def make_filter(
    event: str,
    *,
    every: object,
    once: object,
    before: object,
    after: object,
    event_filter: object,
    throttle: object,
    timeout: object,
) -> Filter | None:
    """Check a user's filter arguments and make the filter; None if it lets every firing pass (`every=1`).

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a number is not positive, or the arguments do not go together.
    """
    group = {"every": every, "before": before, "after": after}
    alone = {"once": once, "event_filter": event_filter, "throttle": throttle, "timeout": timeout}
    given = [name for name, value in {**group, **alone}.items() if value is not None]
    if not given or (len(given) > 1 and any(name in alone for name in given)):
        raise ValueError(
            f"{event}(...): expected exactly one of once, event_filter, throttle, timeout, "
            f"or any of every, before, after, received {', '.join(given) or 'nothing'}; combine filters with & or |"
        )
    if once is not None:
        return Once(_numbers(event, "once", once))
    if event_filter is not None:
        return Where(_function(event, event_filter))
    if throttle is not None:
        return Throttle(_seconds(event, "throttle", throttle))
    if timeout is not None:
        return Timeout(_seconds(event, "timeout", timeout))
    return _every(event, every, before, after)


def _every(event: str, every: object, before: object, after: object) -> Filter | None:
    numbers = (1,) if every is None else _numbers(event, "every", every)
    if 1 in numbers:
        numbers = (1,)
    if numbers == (1,) and before is None and after is None:
        return None
    low = None if after is None else _number(event, "after", after)
    high = None if before is None else _number(event, "before", before)
    return Every(numbers, before=high, after=low)


def _numbers(event: str, name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes)) or getattr(value, "shape", None) == ():
        return (_number(event, name, value),)
    numbers = tuple(sorted({_number(event, name, number) for number in value}))
    if not numbers:
        raise ValueError(f"{event}({name}=...): expected at least one number, received {value!r}; write {name}=5")
    return numbers


def _number(event: str, name: str, value: object) -> int:
    wanted = f"{event}({name}=...): expected a positive integer"
    if name in ("every", "once"):
        wanted += " or several"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{wanted}, received {value!r} ({type(value).__name__}); write {name}=5") from None
    if number < 1:
        raise ValueError(f"{wanted}, received {value!r}; counts begin at 1")
    return number


def _seconds(event: str, name: str, value: object) -> float:
    wanted = f"{event}({name}=...): expected a positive number of seconds, received {value!r}"
    if isinstance(value, (bool, str)):
        raise TypeError(f"{wanted} ({type(value).__name__}); write {name}=60")
    try:
        seconds = float(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{wanted} ({type(value).__name__}); write {name}=60") from None
    if not 0 < seconds < math.inf:
        raise ValueError(f"{wanted}; write {name}=60")
    return seconds


def _function(event: str, value: object) -> Callable[..., object]:
    if not callable(value):
        raise TypeError(
            f"{event}(event_filter=...): expected a function f(engine, count), "
            f"received {value!r} ({type(value).__name__}); write for example lambda engine, count: count > 3"
        )
    try:
        inspect.signature(value).bind(None, 1)
    except ValueError:
        pass  # a builtin without a signature: it will tell by itself
    except TypeError:
        raise ValueError(
            f"{event}(event_filter=...): expected a function f(engine, count), "
            f"received one with the signature {inspect.signature(value)}; take both, and nothing else"
        ) from None
    return value


def _plain(numbers: tuple[int, ...]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else str(list(numbers))
