"""What handlers ask of whom they are attached to: an engine, or the driver of many ranks, and of who trains with it.

Handlers that decide (stop, best, plateau) sit at the driver, behind whatever measures; those that work beside the model
are sent to the ranks and attach themselves to the engine there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from workers.dispatch import RemovableEventHandle
from workers.engine import Engine
from workers.events import EventExpression
from workers.parcels import TRAINER
from workers.state import State

__all__ = [
    "Ranks",
    "choice",
    "count",
    "decide",
    "in_step",
    "interval",
    "keep",
    "measured",
    "number",
    "stop",
    "text",
    "trains_alone",
]

_logger = logging.getLogger(__name__)
Function = TypeVar("Function", bound=Callable[..., Any])


class Ranks(Protocol):
    """The driver, as far as these handlers know it."""

    @property
    def state(self) -> State:
        """The trainer's state over all ranks."""
        ...

    @property
    def evaluated(self) -> Mapping[str, int]:
        """Metric of an evaluation → iteration at which it was measured last."""
        ...

    def on(self, event: EventExpression | str, *, rank: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator: run a handler on ranks."""
        ...

    def listen(
        self, event: EventExpression | str, handler: Callable[..., Any], *, blocking: bool | None, phase: str
    ) -> RemovableEventHandle:
        """Run a handler on the driver."""
        ...

    def send(self, handler: Any, *args: Any, rank: Any = "all", **kwargs: Any) -> None:
        """Have an object attach itself to the trainer of ranks."""
        ...

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function with the worker of each rank; at a gate."""
        ...

    def terminate(self, reason: str) -> None:
        """End training."""
        ...

    def note(self, event: str, **fields: object) -> None:
        """Write a line into the journal."""
        ...


def decide(target: Engine | Ranks, event: EventExpression, handler: Callable[..., Any]) -> None:
    """Have a handler judge at an event, once: behind what measures, before what saves.

    Args:
        target: an engine, or the driver, where all ranks wait meanwhile.
        event: when.
        handler: called with the target.
    """
    if isinstance(target, Engine):
        target.add_phase_handler("decision", event, handler)
    else:
        target.listen(event, handler, phase="decision", blocking=True)


def stop(target: Engine | Ranks, reason: str) -> None:
    """End training after the iteration in progress."""
    _logger.info("%s", reason)
    if isinstance(target, Engine):
        target.terminate()
    else:
        target.terminate(reason)


def measured(target: Engine | Ranks, name: str, call: str) -> float | None:
    """A metric as it was measured for the present iteration; None if an evaluation is yet to measure it.

    Args:
        target: whose metrics.
        name: of the metric.
        call: of whom it is asked, for the error.

    Raises:
        ValueError: there is none of that name, or it is no number.
    """
    state = target.state
    if name not in state.metrics:
        if not isinstance(target, Engine) and "/" in name:
            return None  # it is due at another epoch; slips are found when the program is built
        there = ", ".join(map(repr, sorted(state.metrics))) or "none"
        raise ValueError(
            f"{call}: expected the name of a metric that is measured by now, received {name!r}; there are {there}: "
            "name one of these, or evaluate first"
        )
    if not isinstance(target, Engine) and target.evaluated.get(name, state.iteration) != state.iteration:
        return None
    value = state.metrics[name]
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{call}: expected a metric that is one number, received {name!r} of type {type(value).__name__}; name one "
            "of its parts"
        ) from None


def keep(engine: Engine, handler: object) -> None:
    """Save a handler's state with its engine."""
    name, number = type(handler).__name__, 1
    while (free := f"handler {name}" + (f" {number}" if number > 1 else "")) in engine.attached:
        number += 1
    engine.attach(free, handler)


def in_step(engine: Engine) -> bool:
    """Whether other ranks run the same iterations of this engine: only then may a handler start a collective.

    The trainer's iterations are the same on all ranks; an evaluation may have more batches on one than on another.
    """
    worker = engine.worker
    if worker is None or worker.world_size == 1 or worker.program is None:
        return False
    return worker.program.engines.get(TRAINER) is engine


def trains_alone(target: Engine | Ranks, call: str) -> None:
    """See that a decision is one for all: of several ranks, each would make its own.

    Raises:
        ValueError: the engine is that of one rank among several.
    """
    if isinstance(target, Engine) and target.worker is not None and target.worker.world_size > 1:
        raise ValueError(
            f"{call}: expected an engine that trains alone, or the orchestrator, received the engine of one rank among "
            f"{target.worker.world_size}, each of which would decide for itself; write orchestrator.attach(...)"
        )


def interval(call: str, every: object, name: str = "every") -> int:
    """See that a handler's interval is one.

    Args:
        call: name of the handler's class, for the error.
        every: iterations between two looks, as the user gave it.
        name: of that argument, for the error.

    Raises:
        ValueError: it is no whole number of at least 1.

    Example:
        >>> interval("CheckDivergence", 500)
        500
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(
            f"{call}({name}): expected a whole number of iterations of at least 1, received {every!r} "
            f"({type(every).__name__}); write for example {name}=100"
        )
    return every


def number(call: str, name: str, value: object, *, least: float, below: float = float("inf")) -> float:
    """See that an argument is a number in its range.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < below:
        upper = "" if below == float("inf") else f" and below {below:g}"
        raise ValueError(
            f"{call}({name}): expected a number of at least {least:g}{upper}, received {value!r} "
            f"({type(value).__name__}); choose another"
        )
    return value


def count(call: str, name: str, value: object) -> int:
    """See that an argument is a whole number, which may be 0.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(
            f"{call}({name}): expected a whole number of at least 0, received {value!r} ({type(value).__name__}); "
            "choose another"
        )
    return value


def text(call: str, name: str, value: object) -> str:
    """See that an argument is a text, such as the name of a metric.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str) or not value:
        raise ValueError(
            f"{call}({name}): expected a name, received {value!r} ({type(value).__name__}); write for example "
            '"validation/loss"'
        )
    return value


def choice(call: str, name: str, value: object, among: tuple[str, ...]) -> str:
    """See that an argument is one of some words.

    Raises:
        ValueError: it is not.
    """
    if value not in among:
        words = " or ".join(map(repr, among))
        raise ValueError(f"{call}({name}): expected {words}, received {value!r}; write one of these")
    return str(value)
