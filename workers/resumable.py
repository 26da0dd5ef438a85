"""Where a run stands: what it takes to begin it, to go on with it, to save it and to load it again.

`Course` says where to begin; this puts state, counters and data there. What happens on the way is the loop's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from workers.cursor import Course, Past
from workers.events import Event, Events
from workers.expressions import NEVER
from workers.feed import Feed, is_stateful, length_of
from workers.saved import read_saved, write_saved
from workers.steering import Steered

__all__ = ["Resumable"]

_logger = logging.getLogger(__name__)
_LOOP_KEYS = (Events.ITERATION_STARTED.key, Events.ITERATION_COMPLETED.key)
_BATCH_KEYS = (Events.GET_BATCH_STARTED.key, Events.GET_BATCH_COMPLETED.key)
_EPOCH_KEYS = (Events.EPOCH_STARTED.key, Events.EPOCH_COMPLETED.key)


class Resumable(Steered):
    """An event source with a loop that can be left and gone on with. `Engine` is the one to use."""

    def __init__(self) -> None:
        super().__init__()
        self.attached: dict[str, Any] = {}
        self.state_dict_user_keys: list[str] = []
        self._feed: Feed | None = None
        self._epochs_started = 0
        self._epochs_completed = 0
        self._loaded = False
        self._paused = False
        self._completed = False
        self._running = False
        self._held_data: Any = None
        self._rewound: tuple[str, Callable[[Any], object]] | None = None

    @property
    def running(self) -> bool:
        """Whether it is in `run`."""
        return self._running

    @property
    def completed(self) -> bool:
        """Whether its last run reached its goal."""
        return self._completed

    def attach(self, name: str, thing: Any) -> None:
        """Keep a thing under a name; one with `state_dict` and `load_state_dict` is saved with the engine.

        Raises:
            ValueError: the name is taken.
        """
        if name in self.attached:
            raise ValueError(
                f"attach({name!r}): expected a name that is free, received that of {self.attached[name]!r}; choose "
                "another"
            )
        self.attached[name] = thing

    def set_data(self, data: Any) -> None:
        """Go on with other data from the next batch on. Epochs keep their length."""
        self.state.dataloader = data
        if self._feed is not None:
            self._feed.replace(data)
        self._requested = True

    def state_dict(self) -> dict[str, Any]:
        """Where the engine is, as plain data: numbers, texts, and the states of what is attached.

        It says what the next iteration is, so take it when none is in progress: from ITERATION_COMPLETED on.

        Raises:
            ValueError: a user key is not an attribute of the state.
        """
        data = self.state.dataloader
        if self._loaded:
            data_state = self._held_data
        else:
            data_state = data.state_dict() if is_stateful(data) and not hasattr(data, "seek") else None
        epochs = self._epochs_started, self._epochs_completed
        return write_saved(self.state, epochs, self._completed, self.attached, data_state, self.state_dict_user_keys)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Be where `state_dict` was taken; the next `run` goes on from there, and fires RESUMED.

        A run that was over stays so: with a goal that is reached, `run` has nothing left to do. Without any goal,
        which is how one evaluates, it starts over.

        Raises:
            RuntimeError: the engine is running.
            TypeError: a value has the wrong type.
            ValueError: something is missing, unknown or does not fit. Nothing is changed then.
        """
        if self._running:
            raise RuntimeError(
                "load_state_dict(): expected an engine that does not run, received one that does; load between runs"
            )
        found = read_saved(saved, self.attached, self.state_dict_user_keys)
        state = self.state
        state.iteration, state.epoch = found.iteration, found.epochs_started
        state.epoch_length, state.max_epochs, state.max_iters = (
            found.epoch_length,
            found.max_epochs,
            found.max_iters,
        )
        self._epochs_started, self._epochs_completed = found.epochs_started, found.epochs_completed
        state.following = ()
        state.fired.clear()
        state.fired.update(found.counters)
        for name, value in found.user.items():
            setattr(state, name, value)
        for name, value in found.attached.items():
            self.attached[name].load_state_dict(value)
        self._held_data, self._completed = found.data, found.completed
        self._loaded, self._paused = True, False

    def rewind(self, event: str, then: Callable[[Any], object]) -> None:
        """Have the next `run` go on in the middle of one that was left, as if nothing had happened.

        For a driver that gave the engine the state it had when an event fired, by `load_state_dict`. Instead of telling
        RESUMED, `run` calls `then(engine)`, and fires nothing again that had fired by then.

        Args:
            event: key of the event.
            then: what is left to be done of that firing; it may ask the engine for something.
        """
        self._rewound = event, then

    def _next_count(self, event: Event) -> int:
        """Events of the loop that are fired by hand carry the number of the iteration or epoch."""
        if event.key in self.state.following:
            return self.state.iteration
        if event.key in _EPOCH_KEYS and self.state.epoch > 0:
            return self.state.epoch
        return super()._next_count(event)

    # ---------------------------------------------------------------- the ends of a run
    def _past(self) -> Past:
        state = self.state
        return Past(
            iteration=state.iteration,
            epochs=self._epochs_completed,
            epoch_length=state.epoch_length,
            max_epochs=state.max_epochs,
            max_iters=state.max_iters,
            held=self._loaded or self._paused,
            completed=self._completed,
            lives=None if self._feed is None else self._feed.lives,
            data=state.dataloader,
        )

    def _begin(self, course: Course) -> Event:
        """Stand where the run begins; the first event that it fires."""
        state = self.state
        self._feed = self._feed_for(course)
        if not course.goes_on or course.iteration != state.iteration:
            middle = course.iteration > course.epochs * (course.epoch_length or 0)
            self._epochs_started = course.epochs + middle
            state.output = state.batch = None
        self._epochs_completed = course.epochs
        state.iteration, state.epoch = course.iteration, self._epochs_started
        state.epoch_length, state.max_epochs, state.max_iters = (
            course.epoch_length,
            course.max_epochs,
            course.max_iters,
        )
        state.dataloader, state.times = course.data, {}
        state.following = _LOOP_KEYS if course.data is None else (*_LOOP_KEYS, *_BATCH_KEYS)
        state.fired.update({key: course.iteration for key in state.following})
        state.fired.update(zip(_EPOCH_KEYS, (self._epochs_started, self._epochs_completed), strict=True))
        for listeners in self._listeners.values():
            listeners.rearm()
        self._loaded = self._paused = self._completed = False
        self._held_data = None
        self._running = True
        self._clear_requests()
        resumes = course.goes_on and (course.iteration > 0 or state.fired[Events.STARTED.key] > 0)
        return Events.RESUMED if resumes else Events.STARTED

    def _enter(self, first: Event) -> str | None:
        """Fire the first event; or, rewound, do what is left of the one that the run stands at, and give its key."""
        rewound, self._rewound = self._rewound, None
        if rewound is None:
            self.fire_event(first)
            return None
        event, then = rewound
        then(self)
        return event

    def _feed_for(self, course: Course) -> Feed:
        """The batches of the run: those of an interrupted run, where it stood, or new ones in their place."""
        data = course.data
        same = self._feed is not None and data is self.state.dataloader
        here = course.goes_on and course.iteration == self.state.iteration
        if self._feed is not None and self._paused and same and here:
            if course.iteration > course.epochs * (course.epoch_length or 0):
                self._feed.stay()
            return self._feed
        held = None
        if here and not hasattr(data, "seek"):
            held = self._held_data
            if held is None and same and course.iteration > 0 and is_stateful(data):
                held = data.state_dict()
        period = length_of(data) if course.lives else course.epoch_length
        return Feed(data, lives=course.lives, period=period, held=held, standing=same and here)

    def _epochs_left(self) -> bool:
        state = self.state
        if state.max_iters is None:
            return self._epochs_completed < (state.max_epochs or 0)
        ended = state.epoch_length and state.iteration >= (self._epochs_completed + 1) * state.epoch_length
        return bool(ended) or state.iteration < state.max_iters

    def _last_iteration(self, epoch: int) -> int:
        state = self.state
        length = NEVER if state.epoch_length is None else epoch * state.epoch_length
        return min(length, NEVER if state.max_iters is None else state.max_iters)

    def _tell_exception(self, error: Exception) -> None:
        listeners = self._listeners_of(Events.EXCEPTION_RAISED)
        traceback = error.__traceback__
        for raised in listeners.fire_all(self._next_count(Events.EXCEPTION_RAISED), error):
            if raised is not error:
                _logger.error("a handler of EXCEPTION_RAISED raised an exception itself", exc_info=raised)
        error.__traceback__ = traceback

    def _end(self) -> None:
        self._running = False
        if self._feed is not None and not self._paused:
            self._feed.iterator = None
