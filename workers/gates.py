"""Hang the driver's gates and watches, and the handlers it shipped, on a rank's engines.

Expressions that arrive here use counts only, so every rank comes to the same answer; what a gate does is the session's.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping

from workers.dispatch import RemovableEventHandle
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
        self._attached: dict[int, RemovableEventHandle] = {}

    def attach(self, program: Program, handlers: tuple[RankHandler, ...], membership: Membership) -> None:
        """Attach those that name this rank, take off those that do not any more; what was here stays as it is."""
        for number, shipped in enumerate(handlers):
            here = runs_here(shipped, membership)
            if number in self._attached and not here:
                self._attached.pop(number).remove()
                prefix = f"handler {number}: "
                attached = program.engine(shipped.engine).attached
                for name in [known for known in attached if known.startswith(prefix)]:
                    del attached[name]
            elif number not in self._attached and here:
                handler, args, kwargs = pickle.loads(shipped.pickled)
                engine = program.engine(shipped.engine)
                self._attached[number] = engine.add_event_handler(shipped.event, handler, *args, **kwargs)
                if is_stateful(handler):
                    engine.attached[f"handler {number}: {type(handler).__name__}"] = handler


def runs_here(handler: RankHandler, membership: Membership) -> bool:
    """Whether a handler names this rank."""
    where = handler.where
    if where == "all":
        return True
    if where == "local_rank_0":
        return membership.local_rank == 0
    return membership.rank == where if isinstance(where, int) else membership.rank in where
