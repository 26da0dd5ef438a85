"""Hang the driver's gates and watches, and the handlers it shipped, on a rank's engines.

Expressions that arrive here use counts only, so every rank comes to the same answer; what a gate does is the session's.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping

from workers.engine import Engine
from workers.events import Event, EventExpression
from workers.feed import is_stateful
from workers.parcels import RankHandler
from workers.program import Program
from workers.rank import Membership

__all__ = ["Shipped", "attach_gates", "runs_here"]

Reach = Callable[[str, Engine, Event, int], None]  # (engine name, engine, event, count)


def attach_gates(
    program: Program,
    gates: Mapping[str, EventExpression],
    watches: Mapping[str, EventExpression],
    *,
    arrive: Reach,
    observe: Reach,
) -> None:
    """Call `arrive` or `observe` after a matching firing's local handlers; a gate also tells what a watch would.

    Args:
        program: the rank's program. An engine that it lacks is passed over: the driver, which knows who asked for it,
            says so when it hears what was built.
        gates: engine name → firings at which this rank waits for the driver.
        watches: engine name → firings that are reported in passing.
        arrive: called at a gate, on the training thread; returns when the driver released it.
        observe: called at a watched firing that is no gate.
    """
    for name in sorted({*gates, *watches} & program.engines.keys()):
        _attach(name, program.engine(name), gates.get(name), watches.get(name), arrive, observe)


def _attach(
    name: str,
    engine: Engine,
    gate: EventExpression | None,
    watch: EventExpression | None,
    arrive: Reach,
    observe: Reach,
) -> None:
    told: list[tuple[str, int]] = []  # the firing that went through the gate just now

    def at_gate(engine: Engine) -> None:
        event, count = _firing(engine)
        told[:] = [(event.key, count)]
        arrive(name, engine, event, count)

    def at_watch(engine: Engine) -> None:
        event, count = _firing(engine)
        if (event.key, count) not in told:
            observe(name, engine, event, count)

    if gate is not None:
        engine.add_phase_handler("gate", gate, at_gate)
    if watch is not None:
        engine.add_phase_handler("gate", watch, at_watch)


def _firing(engine: Engine) -> tuple[Event, int]:
    event = engine.state.last_event
    assert event is not None, "a handler runs inside a firing"
    return event, engine.state.counters[event]


class Shipped:
    """The handlers that the driver shipped and that run on this rank.

    One with `state_dict` and `load_state_dict` is saved with its engine.
    """

    def __init__(self) -> None:
        self._attached: dict[int, _Here] = {}

    def attach(
        self, program: Program, handlers: tuple[RankHandler, ...], membership: Membership, *, built: bool = False
    ) -> None:
        """Attach those that name this rank, take off those that do not any more; what was here stays as it is.

        Args:
            program: the rank's program.
            handlers: all that were shipped.
            membership: this rank's place.
            built: the program has just been built, nobody has joined: only what attaches itself on every rank comes
                now, since it may add to the program's state.
        """
        for number, shipped in enumerate(handlers):
            early = shipped.where == "all" and shipped.event is None
            here = runs_here(shipped, membership) and (early or not built)
            if number in self._attached and not here:
                self._attached.pop(number).remove()
            elif number not in self._attached and here:
                self._attached[number] = _Here(program.engine(shipped.engine), number, shipped)


class _Here:
    """A shipped handler that is attached to an engine of this rank."""

    def __init__(self, engine: Engine, number: int, shipped: RankHandler) -> None:
        handler, args, kwargs = pickle.loads(shipped.pickled)
        self._engine, known = engine, set(engine.attached)
        with engine.recorded() as self._handles:
            if shipped.event is None:
                handler.attach(engine, *args, **kwargs)
            else:
                engine.add_event_handler(shipped.event, handler, *args, **kwargs)
                if is_stateful(handler):
                    engine.attached[f"handler {number}: {type(handler).__name__}"] = handler
        self._names = engine.attached.keys() - known

    def remove(self) -> None:
        """Take it off again."""
        for handle in self._handles:
            handle.remove()
        for name in self._names:
            del self._engine.attached[name]


def runs_here(handler: RankHandler, membership: Membership) -> bool:
    """Whether a handler names this rank."""
    where = handler.where
    if where == "all":
        return True
    if where == "local_rank_0":
        return membership.local_rank == 0
    return membership.rank == where if isinstance(where, int) else membership.rank in where
