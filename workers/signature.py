"""How a handler is called: with the engine or without, decided from its signature when it is attached.

What a firing brings along goes behind the engine, the arguments given at the registration behind that.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from workers.events import Event, Events

__all__ = ["Handler", "bind_handler", "check_function", "name_of"]

_BUILT_IN = frozenset(event.key for event in Events)
_MOST_EXTRA = 4  # arguments that a firing of a custom event may bring along


class Handler:
    """A function, the arguments it was attached with, and what else it takes.

    Attributes:
        function: what the user attached.
        call: calls it for a firing that brings nothing along: `call(engine)`.
    """

    __slots__ = ("args", "call", "function", "kwargs", "room", "takes_subject")

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        takes_subject: bool,
        room: int,
    ) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.takes_subject = takes_subject
        self.room = room
        self.call: Callable[[Any], Any]
        if not takes_subject:
            self.call = lambda subject: function(*args, **kwargs)
        elif args or kwargs:
            self.call = lambda subject: function(subject, *args, **kwargs)
        else:
            self.call = function

    def call_with(self, subject: object, extra: tuple[Any, ...]) -> None:
        """Call it for a firing that brings `extra` along; it gets as much of that as it has room for."""
        first = (subject,) if self.takes_subject else ()
        self.function(*first, *extra[: self.room], *self.args, **self.kwargs)


def bind_handler(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], event: Event) -> Handler:
    """Find out how to call a handler of `event`.

    It is called with the engine if it can be. A firing of EXCEPTION_RAISED brings the exception, one of a
    custom event may bring anything; a handler gets it behind the engine if it has room.

    Raises:
        TypeError: `function` can't be called at all.
        ValueError: it can't be called with these arguments, or a call would only make a coroutine or generator.
    """
    check_function(function, repr(event), "a handler that can be called")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some builtins do not tell
        return Handler(function, args, kwargs, takes_subject=True, room=0)
    for takes_subject in (True, False):
        rooms = [n for n in _rooms(event) if _fits(signature, n + takes_subject, args, kwargs)]
        if rooms:
            return Handler(function, args, kwargs, takes_subject=takes_subject, room=max(rooms))
    raise ValueError(_misfit(function, signature, args, kwargs, event))


def check_function(function: object, where: str, expected: str) -> None:
    """See that a call runs something: a call of an asynchronous function or a generator runs nothing of it.

    Args:
        function: what was given: a function, or an object that can be called.
        where: for what it was given, for the error.
        expected: what is expected there, in words.

    Raises:
        TypeError: it can't be called.
        ValueError: a call would run nothing.

    Example:
        >>> async def tell(engine): ...
        >>> check_function(tell, "STARTED", "a handler")
        Traceback (most recent call last):
        ...
        ValueError: STARTED: expected a handler, received tell, an asynchronous function, of which a call runs \
nothing; make it a plain one, with asyncio.run(...) in it
    """
    if not callable(function):
        raise TypeError(
            f"{where}: expected {expected}, received {function!r}; pass the function itself, not what it returns"
        )
    forms = (function, vars(type(function)).get("__call__"))
    if any(map(inspect.iscoroutinefunction, forms)):
        kind, mend = "an asynchronous function", "make it a plain one, with asyncio.run(...) in it"
    elif any(map(inspect.isgeneratorfunction, forms)) or any(map(inspect.isasyncgenfunction, forms)):
        kind, mend = "a generator function", "make it a plain one, without yield"
    else:
        return
    raise ValueError(
        f"{where}: expected {expected}, received {name_of(function)}, {kind}, of which a call runs nothing; {mend}"
    )


def name_of(handler: object) -> str:
    """What to call a handler in an error."""
    return str(getattr(handler, "__qualname__", None) or repr(handler))


def _rooms(event: Event) -> range:
    if event.key == Events.EXCEPTION_RAISED.key:
        return range(2)
    return range(1) if event.key in _BUILT_IN else range(_MOST_EXTRA + 1)


def _fits(signature: inspect.Signature, leading: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        signature.bind(*(None,) * leading, *args, **kwargs)
    except TypeError:
        return False
    return True


def _misfit(
    function: object,
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    event: Event,
) -> str:
    given = [*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())]
    forms = [["engine", *given], given]
    if event.key == Events.EXCEPTION_RAISED.key:
        forms.insert(0, ["engine", "exception", *given])
    calls = " or ".join(f"({', '.join(form)})" for form in forms)
    return (
        f"{event!r}: expected a handler that can be called with {calls}, received {name_of(function)}{signature}; "
        "change its parameters, or what is passed at the registration"
    )
