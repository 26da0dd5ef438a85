"""The driver's event bus: which driver handlers listen to which event of which engine, and who waits for them.

One `EventBus` per engine of the program; it fires an event when the roll call says so. Before the run starts it
compiles what its handlers need into gates (the ranks wait) and watches (they report in passing), counts only.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

from orchestrator.cluster_events import ClusterEvents, Payload
from orchestrator.driver_state import DriverState
from orchestrator.errors import HandlerError, RankfireError, SpecError, explain, too_late
from orchestrator.settings import pickled
from workers.dispatch import EventSource, RemovableEventHandle
from workers.events import Event, EventExpression, Events, counts_only
from workers.parcels import TRAINER
from workers.tracebacks import is_ours, text_of

__all__ = ["EventBus", "expressions_of", "for_ranks", "users_code"]

BLOCKING = frozenset(
    event.key
    for event in (
        Events.STARTED, Events.RESUMED, Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, Events.TERMINATE,
        Events.INTERRUPT, Events.COMPLETED,
    )
)  # fmt: skip
"""Events at which the ranks wait for driver handlers unless told otherwise; at all others they only report."""
_CLUSTER: frozenset[Event] = frozenset(ClusterEvents)
_OF_THE_DRIVER = _CLUSTER | {Events.EXCEPTION_RAISED}
"""Events that come from no firing of which ranks could tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Need:
    """What one registration wants of the ranks."""

    base: Event
    expression: EventExpression
    blocking: bool


class EventBus(EventSource):
    """Driver handlers of one engine's events.

    Args:
        engine: name of the engine in the program.
        subject: what handlers get as their first argument: the orchestrator.
    """

    def __init__(self, engine: str, subject: object) -> None:
        super().__init__(subject)
        self.state: DriverState = DriverState()
        self.engine = engine
        self.register_events(ClusterEvents)
        self._needs: list[_Need] = []
        self._sealed = False

    def listen(
        self,
        event: EventExpression | str,
        handler: Callable[..., Any],
        *args: Any,
        blocking: bool | None = None,
        phase: str = "user",
        **kwargs: Any,
    ) -> RemovableEventHandle:
        """Register a driver handler.

        Args:
            event: what to wait for.
            handler: called as `handler(orchestrator, *args, **kwargs)`, or without the orchestrator.
            args: passed to every call.
            blocking: whether the ranks wait until it returns. Default: at epochs, start and end yes, else no.
            phase: "metrics", "user", "decision" or "gate", in this order at one firing.
            kwargs: passed to every call.

        Raises:
            SpecError: the run has started and the ranks were not told of such a gate, or an event of the cluster is
                sought at another engine than the trainer.
        """
        expression = self._expression(event)
        if self.engine != TRAINER:
            self._refuse_cluster_events(expression, f"engine={self.engine!r}")
        needs = [
            _Need(
                base=base,
                expression=_at(counts_only(expression), base),
                blocking=base.key in BLOCKING if blocking is None else blocking,
            )
            for base in expression.bases()
            if base not in _OF_THE_DRIVER
        ]
        if self._sealed and (new := [need for need in needs if not self._covers(need)]):
            raise SpecError(
                too_late(
                    f"orchestrator.on({expression!r})", f"do not report {new[0].base!r} of engine {self.engine!r} there"
                )
            )
        handle = self.add_phase_handler(phase, expression, handler, *args, **kwargs)
        self._needs += needs
        return handle

    def watch(self, event: Event) -> None:
        """Have the ranks report an event although no handler listens: for the journal."""
        self._needs.append(_Need(base=event, expression=event, blocking=False))

    def expression(self, event: EventExpression | str) -> EventExpression:
        """An event as a value; a string if such an event is known."""
        return self._expression(event)

    def check(
        self,
        event: EventExpression | str,
        handler: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """See that a handler could be registered here, without doing it: for handlers that run on ranks.

        Raises:
            SpecError: it is an event of the cluster, which no rank sees.
            ValueError: it can't be called that way.
        """
        self._refuse_cluster_events(self._expression(event), "rank=…")
        self.add_phase_handler("user", event, handler, *args, **kwargs).remove()

    def seal(self) -> None:
        """The ranks have been told; from here on no handler may need more."""
        self._sealed = True

    def gates(self) -> EventExpression | None:
        """Where the ranks must wait, or None."""
        return _any([need.expression for need in self._needs if need.blocking])

    def watches(self) -> EventExpression | None:
        """What the ranks report in passing, or None."""
        return _any([need.expression for need in self._needs if not need.blocking])

    def event_of(self, key: str) -> Event:
        """The event behind a key that a rank sent."""
        known = self._listeners.get(key)
        return known.event if known is not None else next((e for e in Events if e.key == key), Event(key))

    def fire(self, key: str, count: int, *extra: object) -> None:
        """Run the handlers due at one firing, in order.

        Raises:
            HandlerError: one of them raised; names it, the event, and the line.
        """
        event = self.event_of(key)
        with users_code(f"{event!r} #{count}"):
            self.dispatch(event, count, *extra)

    def tell(self, payload: Payload) -> None:
        """Fire an event of the cluster: run the handlers due, in order.

        Args:
            payload: what happened; it names the event, and handlers get it behind the orchestrator.

        Raises:
            HandlerError: one of them raised; names it, the event, and the line.
        """
        event, last = payload.event, self.state.last_event
        self.fire(event.key, self._next_count(event), payload)
        self.state.last_event = last  # it may come in the middle of another one, whose handlers are not through yet

    def _refuse_cluster_events(self, expression: EventExpression, given: str) -> None:
        if found := [base for base in expression.bases() if base in _CLUSTER]:
            raise SpecError(
                explain(
                    f"orchestrator.on({expression!r}, {given})",
                    expected="an event that engines fire",
                    received=f"{found[0]!r}, which the driver fires for the run as a whole",
                    mend=f"leave {given.partition('=')[0]} out",
                )
            )

    def _covers(self, need: _Need) -> bool:
        return any(
            known.base == need.base
            and known.blocking >= need.blocking
            and known.expression in (need.expression, need.base)
            for known in self._needs
        )


@contextmanager
def users_code(where: str) -> Iterator[None]:
    """What a user's function raises on the driver inside this block names the function and its line.

    Args:
        where: what it was called for, in words.

    Raises:
        HandlerError: it raised.
    """
    try:
        yield
    except RankfireError:
        raise
    except (Exception, SystemExit) as error:  # sys.exit() in a handler is the user's, as on a rank
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise HandlerError.in_handler(_culprit(error), where, what, traceback=text_of(error)) from error


def expressions_of(
    buses: Mapping[str, EventBus], of: Callable[[EventBus], EventExpression | None]
) -> dict[str, EventExpression]:
    """What the buses need of the ranks, by engine: their gates, or their watches."""
    found = ((name, of(bus)) for name, bus in buses.items())
    return {name: expression for name, expression in found if expression is not None}


def for_ranks(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the reduced metrics, as ranks get it when they are released.

    Args:
        metrics: of the driver's state; handlers may have set some.

    Raises:
        SpecError: one can't be pickled.
    """
    for name, value in metrics.items():
        if not isinstance(value, int | float | str):
            pickled(value, f"run.metrics[{name!r}]")
    return dict(metrics)


def _at(expression: EventExpression, base: Event) -> EventExpression:
    """The part of an expression that one base event can trigger."""
    return expression if expression.bases() == (base,) else expression & base


def _any(expressions: list[EventExpression]) -> EventExpression | None:
    distinct = list(dict.fromkeys(expressions))
    return reduce(or_, distinct) if distinct else None


def _culprit(error: BaseException) -> str:
    """The outermost function in the traceback that is not ours: the handler."""
    for frame in traceback.extract_tb(error.__traceback__):
        if not is_ours(frame.filename):
            return f"{frame.name} ({frame.filename}:{frame.lineno})"
    return "of Rankfire"
