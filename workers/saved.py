"""An engine's state as plain data, and back: what is written, and what is checked before it is taken up.

Pure, but for asking what is attached for its state. The engine takes up what `read_saved` found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from workers.cursor import epochs_in, whole_number
from workers.events import Events
from workers.feed import is_stateful
from workers.state import State

__all__ = ["Saved", "read_saved", "write_saved"]

_OWN = ("iteration", "epoch_length", "max_epochs", "max_iters", "completed", "counters", "attached", "data")
_STARTED, _COMPLETED = Events.EPOCH_STARTED.key, Events.EPOCH_COMPLETED.key
_LOAD = "load_state_dict"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A saved state that was checked.

    Attributes:
        iteration: iterations done.
        epochs_started: epochs whose EPOCH_STARTED has fired.
        epochs_completed: epochs whose EPOCH_COMPLETED has fired.
        epoch_length: iterations in an epoch, if known.
        max_epochs: the goal in epochs.
        max_iters: the goal in iterations.
        completed: whether the run was over.
        counters: how often each event had fired, by key.
        attached: states by name.
        data: the state of the data.
        user: attributes of the state.
    """

    iteration: int
    epochs_started: int
    epochs_completed: int
    epoch_length: int | None
    max_epochs: int | None
    max_iters: int | None
    completed: bool
    counters: Mapping[str, int]
    attached: Mapping[str, Any]
    data: Any
    user: Mapping[str, Any]


def write_saved(
    state: State,
    epochs: tuple[int, int],
    completed: bool,
    attached: Mapping[str, Any],
    data: Any,
    user_keys: Iterable[str],
) -> dict[str, Any]:
    """What `Engine.state_dict` gives.

    Args:
        state: the state of the run.
        epochs: how many were started, and how many completed.
        completed: whether the run is over.
        attached: things by name.
        data: the state of the data, or None.
        user_keys: names of attributes of `state`.

    Raises:
        ValueError: a user key is not an attribute, or has the name of something else that is saved.
    """
    counters = {str(key): count for key, count in state.counters.items()}
    if any(epochs):
        counters[_STARTED], counters[_COMPLETED] = epochs
    saved = {
        "iteration": state.iteration,
        "epoch_length": state.epoch_length,
        "max_epochs": state.max_epochs,
        "max_iters": state.max_iters,
        "completed": completed,
        "counters": counters,
        "attached": {name: thing.state_dict() for name, thing in attached.items() if is_stateful(thing)},
    }
    if data is not None:
        saved["data"] = data
    for key in user_keys:
        if key in _OWN or state.get(key, _OWN) is _OWN:
            wrong = "which is the engine's own" if key in _OWN else "which it has not"
            mend = "choose another name" if key in _OWN else "set it first, or take it off the list"
            raise ValueError(
                f"state_dict(): state_dict_user_keys: expected attributes of the state, received {key!r}, {wrong}; "
                f"{mend}"
            )
        saved[key] = state.get(key)
    return saved


def read_saved(saved: object, attached: Mapping[str, Any], user_keys: Iterable[str]) -> Saved:
    """Check a saved state against the engine that shall take it up.

    Raises:
        TypeError: a value has the wrong type.
        ValueError: something is missing, unknown, or contradicts the rest.
    """
    if not isinstance(saved, Mapping):
        raise TypeError(
            f"{_LOAD}(): expected what state_dict() gave, received {saved!r} ({type(saved).__name__}); give that "
            "mapping"
        )
    missing = [key for key in user_keys if key not in saved]
    if missing:
        raise ValueError(
            f"{_LOAD}(): expected the keys {_names(missing)} of state_dict_user_keys, received the keys "
            f"{_names(map(str, saved))}; take them off the list, or load a state that has them"
        )
    epoch_length = whole_number(_LOAD, "epoch_length", saved.get("epoch_length"), least=0)
    iteration = _iteration(saved, epoch_length)
    counters = _counters(saved.get("counters", {}))
    started, completed = _epochs(iteration, epoch_length, counters)
    return Saved(
        iteration=iteration,
        epochs_started=started,
        epochs_completed=completed,
        epoch_length=epoch_length,
        max_epochs=whole_number(_LOAD, "max_epochs", saved.get("max_epochs"), least=1),
        max_iters=whole_number(_LOAD, "max_iters", saved.get("max_iters"), least=1),
        completed=bool(saved.get("completed", False)),
        counters=counters,
        attached=_attached(saved.get("attached"), attached),
        data=saved.get("data"),
        user={key: saved[key] for key in user_keys},
    )


def _iteration(saved: Mapping[str, Any], epoch_length: int | None) -> int:
    if saved.get("iteration") is not None:
        return whole_number(_LOAD, "iteration", saved["iteration"], least=0) or 0
    epoch = whole_number(_LOAD, "epoch", saved.get("epoch"), least=0)
    if epoch is None or epoch_length is None:
        raise ValueError(
            f"{_LOAD}(): expected 'iteration', or 'epoch' and 'epoch_length', "
            f"received the keys {_names(map(str, saved)) or 'none'}; give what state_dict() gave"
        )
    return epoch * epoch_length


def _counters(counters: object) -> dict[str, int]:
    if not isinstance(counters, Mapping):
        raise TypeError(f"{_LOAD}(counters=...): expected counts by event, received {counters!r}; leave it out")
    return {str(key): whole_number(_LOAD, f"counters[{str(key)!r}]", n, least=0) or 0 for key, n in counters.items()}


def _epochs(iteration: int, epoch_length: int | None, counters: Mapping[str, int]) -> tuple[int, int]:
    """Epochs started and completed: at the end of an epoch the counters say whether its events have fired."""
    if epoch_length == 0:
        return counters.get(_STARTED, 0), counters.get(_COMPLETED, 0)
    full = epochs_in(iteration, epoch_length)
    between = iteration == full * (epoch_length or 0)
    possible = {full, full - 1} if between and full else {full}
    completed = counters.get(_COMPLETED, full)
    if completed not in possible:
        raise ValueError(
            f"{_LOAD}(counters=...): expected {' or '.join(map(str, sorted(possible)))} completed epochs at iteration "
            f"{iteration} with an epoch_length of {epoch_length}, received {completed}; give what state_dict() gave"
        )
    if completed < full or not between:
        return completed + 1, completed
    return min(max(counters.get(_STARTED, full), full), full + 1), completed


def _attached(states: object, things: Mapping[str, Any]) -> Mapping[str, Any]:
    if states is None:
        return {}
    if not isinstance(states, Mapping):
        raise TypeError(f"{_LOAD}(attached=...): expected states by name, received {states!r}; leave it out")
    expected = {name for name, thing in things.items() if is_stateful(thing)}
    if expected != set(states):
        raise ValueError(
            f"{_LOAD}(attached=...): expected states of what is attached, {_names(sorted(expected)) or 'nothing'}, "
            f"received those of {_names(sorted(map(str, states))) or 'nothing'}; attach the same things under the same "
            "names"
        )
    return states


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
