"""The loop: an `Engine` runs a function over batches, epoch by epoch, and fires events around every step.

Below it: `resumable.py` (where a run stands), `steering.py` (what may be asked of it), `dispatch.py` (who is
called at an event). Needs neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter as clock
from typing import Any

from workers.cursor import chart
from workers.errors import DataLoaderEmptyError
from workers.events import Event, Events
from workers.feed import Feed
from workers.listeners import Listeners
from workers.resumable import Resumable
from workers.signature import check_function
from workers.state import State
from workers.timers import Timer

__all__ = ["Engine"]

_END = object()
_ITERATION_EVENTS = (Events.ITERATION_STARTED, Events.ITERATION_COMPLETED)
_BATCH_EVENTS = (Events.GET_BATCH_STARTED, Events.GET_BATCH_COMPLETED)
_ENDS = {Events.TERMINATE.key, Events.INTERRUPT.key, Events.COMPLETED.key}
_BETWEEN_EPOCHS = {None, Events.STARTED.key, Events.RESUMED.key, Events.EPOCH_COMPLETED.key, *_ENDS}


class Engine(Resumable):
    """Runs a process function over data and fires events.

    Args:
        process_function: `f(engine, batch)`; what it returns becomes `engine.state.output`.

    Attributes:
        state: where the run is; see `State`.
        attached: metrics and handlers by name; those with a state are saved with the engine.
        announced: number of the iteration that the engine is in or about to start.
        state_dict_user_keys: names of attributes of `state` that are saved with the engine.
        worker: this rank's `Worker`, where there is one; for handlers that want more than the engine.
        foreign: tells exceptions that come from outside the program, such as a lost peer: they are raised, and no
            handler hears of them.
        driven: whether a driver runs it, who must hear of each exception: `suppress()` does nothing then.

    Example:
        >>> trainer = Engine(lambda engine, batch: batch * 2)
        >>> @trainer.on(Events.EPOCH_COMPLETED(every=2))
        ... def tell(engine):
        ...     print(engine.state.epoch, engine.state.output)
        >>> state = trainer.run([1, 2, 3], max_epochs=4)
        2 6
        4 6
    """

    def __init__(self, process_function: Callable[[Engine, Any], Any]) -> None:
        check_function(process_function, "Engine(process_function)", "a function f(engine, batch)")
        super().__init__()
        self.process_function = process_function
        self.announced = 0
        self.worker: Any = None
        self._timers = Timer("run")
        self._within = self._timers
        self._first_iteration = 0
        self.foreign: Callable[[Exception], bool] = lambda error: False
        self.driven = False

    # ---------------------------------------------------------------- running
    def run(
        self,
        data: Any = None,
        max_epochs: int | None = None,
        max_iters: int | None = None,
        epoch_length: int | None = None,
        resume_from_epoch: int | None = None,
        resume_from_iteration: int | None = None,
    ) -> State:
        """Run over `data` until the goal is reached.

        A run that did not reach its goal (`terminate`, `interrupt`, an exception) or was loaded goes on at
        its next iteration; so does a completed one that is given a farther goal and the same data. Any other
        begins at iteration 0. Its events are those of `_run`; besides:

        KeyboardInterrupt: INTERRUPT, then it is raised again
        any other exception: EXCEPTION_RAISED, then it is raised again unless a handler called `suppress()`

        Args:
            data: an iterable of batches; None calls the process function with None. A run that goes on may
                leave it out and keep its data.
            max_epochs: epochs to make in all; 1 if neither goal is given.
            max_iters: iterations to make in all, instead of `max_epochs`.
            epoch_length: iterations in an epoch. Default: `len(data)`; without a length, the first end of the
                data. If given, one iterator over the data lives on from epoch to epoch.
            resume_from_epoch: go on after so many epochs; 0 starts over.
            resume_from_iteration: go on after so many iterations; 0 starts over. Wins over
                `resume_from_epoch`.

        Returns:
            The state of the run.

        Raises:
            DataLoaderEmptyError: the data gives no batches.
            RuntimeError: the engine is running already.
            TypeError: a number is not whole.
            ValueError: the arguments do not fit each other, or the run that goes on.
        """
        if self._running:
            raise RuntimeError(
                "run(): expected an engine that does not run, received one that does; use another inside a handler"
            )
        course = chart(
            self._past(),
            data,
            max_epochs=max_epochs,
            epoch_length=epoch_length,
            max_iters=max_iters,
            resume_from_epoch=resume_from_epoch,
            resume_from_iteration=resume_from_iteration,
        )
        first = self._begin(course)
        self._timers.reset()
        self._within, self._first_iteration = self._timers, course.iteration
        try:
            self._run(first)
        except KeyboardInterrupt:
            self.fire_event(Events.INTERRUPT)
            raise
        except Exception as error:
            if self.foreign(error):
                raise
            self._tell_exception(error)
            if self.driven or not self._suppressed:
                raise
        finally:
            self._end()
        return self.state

    def _run(self, first: Event) -> None:
        """The run, step by step.

        STARTED, or RESUMED; nothing if it was rewound, which may be to any event below
        while epochs are left, and nothing was requested:
            EPOCH_STARTED, once an epoch
            iterations                      (`_iterate`)
            TERMINATE_SINGLE_EPOCH, if `terminate_epoch()` was called
            EPOCH_COMPLETED, if the epoch is complete, unless `terminate_epoch(skip_epoch_completed=True)` was called
        INTERRUPT, if `interrupt()` was called: the run is over for now
        TERMINATE, if `terminate()` was called
        COMPLETED
        """
        started = clock()
        after = self._enter(first)
        self._within = self._timers["epoch loop"]
        if after not in _BETWEEN_EPOCHS:
            self._run_epoch(after)
        while not (after in _ENDS or self._terminating or self._interrupting) and self._epochs_left():
            self._run_epoch()
        self._within = self._timers
        self.state.times[Events.COMPLETED.key] = clock() - started
        self._timers.add(clock() - started)
        if self._interrupting and not self._terminating:
            if after != Events.INTERRUPT.key:
                self.fire_event(Events.INTERRUPT)
            self._paused = True
            return
        if self._terminating and after not in _ENDS:
            self.fire_event(Events.TERMINATE)
        if not self._skip_completed and after != Events.COMPLETED.key:
            self.fire_event(Events.COMPLETED)
        self._completed = not self._epochs_left()

    def _run_epoch(self, after: str | None = None) -> None:
        state, started, skipped = self.state, clock(), after == Events.TERMINATE_SINGLE_EPOCH
        if after is None:  # not rewound to an event within it; a request between two epochs has none to end
            self._terminating_epoch = self._skip_epoch_completed = False
        epoch = state.epoch = self._epochs_completed + 1
        if self._epochs_started < epoch:
            self._epochs_started = epoch
            self.dispatch(Events.EPOCH_STARTED, epoch)
        last = self._last_iteration(epoch)
        if state.iteration < last and not skipped and not self._stopping():
            assert self._feed is not None
            self._feed.begin_epoch(state.iteration)
            self._iterate(self._feed, last)
        if self._terminating_epoch or skipped:
            self._skip_epoch(epoch)
        took = clock() - started
        if state.epoch_length is not None and state.iteration >= epoch * state.epoch_length:
            state.times[Events.EPOCH_COMPLETED.key] = took
            self._epochs_completed = epoch
            if not self._skip_epoch_completed:
                self.dispatch(Events.EPOCH_COMPLETED, epoch)
        self._within.add(clock() - started)

    def _iterate(self, feed: Feed, last: int) -> None:  # noqa: C901 - one hot loop, written out on purpose
        """The iterations of one epoch, up to number `last`.

        while iterations are left:
            announce the number; see to requests, which may end the loop here
            GET_BATCH_STARTED, fetch, GET_BATCH_COMPLETED     (DATALOADER_STOP_ITERATION, if the data ran out)
            ITERATION_STARTED
            output = process_function(engine, batch)
            ITERATION_COMPLETED

        This is the hot path: what happens at every iteration is written out, what happens at few is a call.
        """
        state, step = self.state, self.process_function
        epochs, self._within = self._within, self._within["iteration loop"]
        fetching, processing = self._within["get batch"], self._within["process function"]
        (before, after), (starts, ends) = _BATCH_EVENTS, _ITERATION_EVENTS
        at_before, at_after, at_start, at_end = map(self._listeners_of, (before, after, starts, ends))
        if feed.data is None:  # nothing is fetched, so nothing tells of it
            before, after = ends, starts
            at_before = at_after = Listeners(self, ends)
        number, batches, entered = state.iteration, feed.resume(), clock()
        start = entered
        try:
            while number < last:
                number += 1
                self.announced = number
                if self._requested:
                    if not self._attend():
                        break
                    batches, start = feed.resume(), clock()
                state.last_event = before
                if number >= at_before.due:
                    start = self._fire_timed(at_before, number, start)
                try:
                    batch = next(batches)
                except StopIteration:
                    batch = self._next_pass(feed)
                    if batch is _END:
                        break
                    batches = feed.resume()
                state.batch = batch
                state.last_event = after
                now = clock()
                fetching.seconds += now - start
                if number >= at_after.due:
                    now = self._fire_timed(at_after, number, now)
                    batch = state.batch
                state.iteration = number
                state.last_event = starts
                if number >= at_start.due:
                    now = self._fire_timed(at_start, number, now)
                    batch = state.batch
                state.output = step(self, batch)
                start = clock()
                processing.seconds += start - now
                state.last_event = ends
                if number >= at_end.due:
                    start = self._fire_timed(at_end, number, start)
        finally:
            self._within.add(clock() - entered)
            self._within = epochs

    def _next_pass(self, feed: Feed) -> Any:
        """The data ran out: the first batch of its next pass, or `_END` if the epoch ends here."""
        state = self.state
        if state.epoch_length is None and state.iteration > 0:
            state.epoch_length = state.iteration
            self._listeners_of(Events.GET_BATCH_STARTED).rearm()  # that number will be fetched once more
            return _END
        if state.epoch_length is not None:
            self.fire_event(Events.DATALOADER_STOP_ITERATION)
            if self._stopping():
                return _END
            feed.restart()
        batch = _END if feed.iterator is None else next(feed.iterator, _END)
        if batch is _END:
            raise DataLoaderEmptyError(
                f"run(data): expected batch {state.iteration + 1}, but the data, begun anew, gave none; an "
                "iterator can't be read twice: give data that can, or call set_data() in a handler of "
                "DATALOADER_STOP_ITERATION"
            )
        return batch

    def _skip_epoch(self, epoch: int) -> None:
        """`terminate_epoch()` was called: the next iteration is the first of the next epoch."""
        if self._terminating_epoch:
            self._terminating_epoch = False
            self.fire_event(Events.TERMINATE_SINGLE_EPOCH)
        state, last = self.state, self._last_iteration(epoch)
        if state.iteration < last and self._feed is not None:
            self._first_iteration += last - state.iteration
            state.iteration = last
            self._feed.skip_epoch()

    # ---------------------------------------------------------------- events
    def dispatch(self, event: Event, count: int, *extra: Any) -> None:
        """Like `EventSource.dispatch`; the time that handlers take is measured."""
        start = clock()
        super().dispatch(event, count, *extra)
        if self.listens(event):
            self._within[f"event {event.key}"].add(clock() - start)
        if event.key in self.state.following:  # fired by hand: the loop will fire this number once more
            self._listeners_of(event).rearm()

    def _fire_timed(self, listeners: Listeners, count: int, start: float) -> float:
        called = listeners.fire(count)
        now = clock()
        if called:
            self._within[f"event {listeners.event.key}"].add(now - start)
        return now

    # ---------------------------------------------------------------- what is attached, measured, saved
    @property
    def timers(self) -> Timer:
        """Counts and times of the last run, as a tree; printing it gives a table.

        run > epoch loop > iteration loop > "get batch", "process function", "event X".
        """
        loop = self._timers["epoch loop"]["iteration loop"]
        for name in ("get batch", "process function"):  # counted here, since the loop does not
            if name in loop.parts:
                loop[name].count = self.state.iteration - self._first_iteration
        return self._timers
