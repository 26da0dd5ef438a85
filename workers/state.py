"""The state of a run: where it is, what it holds, and whatever a user hangs on it.

`State` stores; it decides nothing. The engine moves `iteration` and `epoch`; a driver that hears of many
engines keeps one of its own.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from workers.events import Event
from workers.foreign import as_event

__all__ = ["Counters", "State"]


class Counters(dict[Any, int]):
    """How often each event has fired, by event or by its key; 0 for one that has not.

    Keys are strings; an event hashes and compares like its key, so `counters[event]` works as well.
    """

    def __missing__(self, key: object) -> int:
        return 0


class State:
    """Where a run is. Attributes of your own may be added; they stay over resumes.

    Attributes:
        iteration: iterations so far, counted over all epochs, from 1; the current one while it is in
            progress.
        epoch: the current epoch, from 1; 0 before the first.
        epoch_length: iterations in an epoch; None while unknown.
        max_epochs: epochs that the run shall make; None if `max_iters` is given.
        max_iters: iterations that the run shall make; None if `max_epochs` is given.
        output: what the process function returned last.
        batch: the batch in progress; a handler of ITERATION_STARTED may replace it.
        metrics: values by name.
        dataloader: the data of the run.
        seed: the seed of the run, if somebody set one.
        last_event: the event that fired last, or whose handlers are running.
        fired: the counts as they are kept; read `counters`.
        following: keys of the events that are counted by the iteration.
        times: seconds that an epoch (`EPOCH_COMPLETED`) and the run (`COMPLETED`) took, by event or key.

    Example:
        >>> state = State()
        >>> state.best = 0.5
        >>> state.get("best"), state.get("worst", 1.0)
        (0.5, 1.0)
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "batch",
        "dataloader",
        "epoch",
        "epoch_length",
        "fired",
        "following",
        "iteration",
        "last_event",
        "max_epochs",
        "max_iters",
        "metrics",
        "output",
        "seed",
        "times",
    )

    def __init__(self) -> None:
        self.iteration = 0
        self.epoch = 0
        self.epoch_length: int | None = None
        self.max_epochs: int | None = None
        self.max_iters: int | None = None
        self.output: Any = None
        self.batch: Any = None
        self.metrics: dict[str, Any] = {}
        self.dataloader: Any = None
        self.seed: int | None = None
        self.last_event: Event | None = None
        self.times: dict[Any, float] = {}
        self.following: tuple[str, ...] = ()
        self.fired = Counters()

    @property
    def epoch_iteration(self) -> int:
        """Iterations so far in this epoch, from 1; 0 when it has just begun."""
        return self.iteration - max(self.epoch - 1, 0) * (self.epoch_length or 0)

    @property
    def counters(self) -> Counters:
        """How often each event has fired.

        The loop does not count its events one by one: nothing listens to most of them. Those that it names in
        `following` are brought up to the iteration here, when somebody looks.
        """
        counters = self.fired
        for key in self.following:
            if counters[key] != self.iteration + 1:  # the batch that is being fetched has a number already
                counters[key] = self.iteration
        return counters

    def get_event_attrib_value(self, event: Event | str) -> int:
        """How often an event has fired, as pytorch-ignite's handlers ask for it."""
        theirs = event if isinstance(event, Event) else as_event(event)
        return self.counters[theirs if isinstance(theirs, Event) else event]

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or `default` if there is none of that name."""
        return getattr(self, name) if self._has(name) else default

    def setdefault(self, name: str, factory: Callable[[], Any]) -> Any:
        """An attribute; if there is none of that name, what `factory()` makes becomes it first.

        Example:
            >>> State().setdefault("losses", list).append(0.5)
        """
        if not self._has(name):
            setattr(self, name, factory())
        return getattr(self, name)

    def _has(self, name: str) -> bool:
        return name in self.__dict__ or hasattr(type(self), name)

    def _names(self) -> list[str]:
        fields = [name for name in self.__slots__ if not name.startswith("_")]
        return [*fields, "epoch_iteration", "counters", *self.__dict__]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        near = difflib.get_close_matches(name, self._names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; state.get(name, default) does without it"
        raise AttributeError(f"state has no attribute {name!r}{hint}", name=name, obj=self)

    def __repr__(self) -> str:
        shown = ("iteration", "epoch", "epoch_length", "max_epochs", "max_iters", "metrics")
        parts = [f"{name}={getattr(self, name)!r}" for name in (*shown, *self.__dict__)]
        return f"State({', '.join(parts)})"
