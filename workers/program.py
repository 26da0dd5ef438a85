"""What a user's `build(worker)` returns, checked as soon as it returns.

Made by users, checked when a worker builds it, run by the session. Engines, data and state know nothing of it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from workers.engine import Engine
from workers.errors import ProgramError
from workers.parcels import TRAINER

__all__ = ["Program", "Stateful", "check_program", "hint"]


@runtime_checkable
class Stateful(Protocol):
    """Anything whose state can be taken and given back: modules, optimizers, schedulers, scalers, handlers."""

    def state_dict(self) -> Mapping[str, object]:
        """The state as plain values and tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, object], /) -> object:
        """Take up a state."""
        ...


@dataclass(kw_only=True)
class Program:
    """One rank's engines, their data, and the state that a checkpoint holds.

    Args:
        engines: by name; `trainer` is the one that `run` runs.
        data: what each engine iterates over; best made by `worker.loader`.
        state: what training changes: anything with `state_dict` and `load_state_dict`. Engines save themselves.

    Example:
        >>> program = Program(engines={"trainer": Engine(lambda engine, batch: batch)}, data={"trainer": [1, 2]})
    """

    engines: Mapping[str, Engine]
    data: Mapping[str, Iterable[Any] | None] = field(default_factory=dict)
    state: Mapping[str, Stateful] = field(default_factory=dict)

    def engine(self, name: str) -> Engine:
        """An engine by name.

        Raises:
            ProgramError: there is none of that name.
        """
        if name not in self.engines:
            raise ProgramError(
                f"program: expected the name of an engine, received {name!r}; {hint(name, self.engines)}"
            )
        return self.engines[name]


def check_program(built: object, where: str) -> Program:
    """See that what `build` returned can be run.

    Args:
        built: what it returned.
        where: its name, for the error.

    Raises:
        ProgramError: says what was expected and what came.
    """
    if not isinstance(built, Program):
        raise ProgramError(
            f"{where}: expected it to return a Program, received {type(built).__name__}; "
            "end it with `return Program(engines=…, data=…, state=…)`"
        )
    for name, engine in built.engines.items():
        if not isinstance(engine, Engine):
            raise ProgramError(
                f"{where}: engines[{name!r}]: expected an Engine, received {type(engine).__name__}; write Engine(step)"
            )
    if TRAINER not in built.engines:
        raise ProgramError(
            f"{where}: engines: expected one named 'trainer', received {sorted(built.engines) or 'none'}; "
            "name the engine that trains 'trainer'"
        )
    for name in built.data:
        if name not in built.engines:
            raise ProgramError(
                f"{where}: data: expected names of engines, received {name!r}; {hint(name, built.engines)}"
            )
    for name, entry in built.state.items():
        if not isinstance(entry, Stateful):
            raise ProgramError(
                f"{where}: state[{name!r}]: expected state_dict() and load_state_dict(), "
                f"received {type(entry).__name__}; give it both, or leave it out of `state`"
            )
    return built


def hint(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is not known: the one that was probably meant, else all that are."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, names)) or 'none'}"
