"""Save a checkpoint from time to time, keep the newest ones and the best one.

Copying, writing and committing are in `saving.py`; which ones may go is decided in `checkpoints/retention.py`.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from orchestrator.checkpoints.registry import Committed
from orchestrator.checkpoints.retention import best_of, to_prune
from orchestrator.driver import Driver
from orchestrator.errors import SpecError, explain
from workers.events import Events

__all__ = ["Best", "Checkpoint"]

SLIP = 0.8  # how much alike two names are if one was probably meant to be the other
_UNITS = ("epochs", "iterations", "seconds")


@dataclass(frozen=True, slots=True)
class Best:
    """Which checkpoint is the best one.

    Args:
        metric: name of a reduced metric, such as "validation/accuracy".
        mode: "max" if a greater value is better, "min" if a smaller one is.
    """

    metric: str
    mode: Literal["max", "min"] = "max"

    def __post_init__(self) -> None:
        if self.mode not in ("max", "min"):
            mend = "write 'max' if a greater value is better, 'min' if a smaller one is"
            raise SpecError(explain("Best(mode)", expected="'max' or 'min'", received=repr(self.mode), mend=mend))


class Checkpoint:
    """Save from time to time, after all other handlers of the same event.

    Args:
        every: after each so many epochs; or `{"epochs": n}`, `{"iterations": n}` or `{"seconds": s}`.
        keep: how many of the newest stay.
        best: one more stays: the best by a reduced metric.
        on_save_error: what a save that failed means: "stop" ends the run, "continue" goes on without it.
        clock: seconds, monotonic.

    Raises:
        SpecError: an argument can't be used.

    Example:
        >>> orchestrator.attach(Checkpoint(every=1, keep=3, best=Best("validation/accuracy")))  # doctest: +SKIP
        >>> orchestrator.attach(Checkpoint(every={"iterations": 500}))  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        every: int | Mapping[str, float] = 1,
        keep: int = 3,
        best: Best | None = None,
        on_save_error: Literal["stop", "continue"] = "stop",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.unit, self.every = _interval(every)
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            expected, mend = "a whole number of at least 1", "write how many of the newest checkpoints shall stay"
            raise SpecError(explain("Checkpoint(keep)", expected=expected, received=repr(keep), mend=mend))
        if on_save_error not in ("stop", "continue"):
            where, expected = "Checkpoint(on_save_error)", "'stop' or 'continue'"
            mend = "write 'continue' to train on without the checkpoint, or leave it out"
            raise SpecError(explain(where, expected=expected, received=repr(on_save_error), mend=mend))
        self.keep = keep
        self.best = best
        self.on_save_error = on_save_error
        self._clock = clock
        self._last: float | None = None  # when the last save was begun, by the clock
        self._begun: int | None = None  # iteration of the last save that was begun
        self._due: Callable[[], None] | None = None  # what saves at a boundary: one, so that it waits there once

    def attach(self, orchestrator: Driver) -> None:
        """Register behind the user's handlers, so that what they measure is in the checkpoint."""
        orchestrator.listen(Events.COMPLETED, self.at_end, phase="gate", blocking=True)
        count = int(self.every)
        if self.unit == "epochs":
            orchestrator.listen(Events.EPOCH_COMPLETED(every=count), self, phase="gate", blocking=True)
        elif self.unit == "iterations":
            event = Events.ITERATION_COMPLETED(every=count)
            orchestrator.listen(event, self.within_epoch, phase="gate", blocking=True)
        if self.unit == "iterations" or (self.unit == "seconds" and self.best is not None):
            orchestrator.listen(Events.EPOCH_COMPLETED, self.at_epoch_end, phase="gate", blocking=True)

    def check(self, measured: Mapping[str, Sequence[str]]) -> None:
        """Look for a slip in the name of the best one's metric, before anything is trained.

        Only what is very like a metric that will be there is refused: handlers may set metrics that nobody knows yet.

        Args:
            measured: what stands before the metrics' names, of each evaluation that will be made → its metrics.

        Raises:
            SpecError: there is such a slip; names what was probably meant.
        """
        if self.best is None:
            return
        prefix, _, name = self.best.metric.partition("/")
        known = measured.get(prefix, ())
        if name not in known and (near := difflib.get_close_matches(name, known, n=1, cutoff=SLIP)):
            raise SpecError(_no_metric(self.best.metric, f"did you mean {f'{prefix}/{near[0]}'!r}?"))

    def tick(self, orchestrator: Driver) -> None:
        """Called a few times a second: when it is time, save at the next boundary that all ranks reach."""
        if self.unit != "seconds":
            return
        now = self._clock()
        if self._last is None:
            self._last = now
        elif now - self._last >= self.every:
            self._last = now
            self._due = self._due or partial(self._save_due, orchestrator)
            orchestrator.at_boundary(self._due)

    def __call__(self, orchestrator: Driver) -> None:
        """Begin to save now."""
        self._begun = orchestrator.state.iteration
        orchestrator.checkpoint()
        self._check_metric(orchestrator.metrics)

    def within_epoch(self, orchestrator: Driver) -> None:
        """An iteration at which a save is due; at an epoch's last one, what its end brings comes first."""
        state = orchestrator.state
        if not state.epoch_length or state.iteration % state.epoch_length:
            self(orchestrator)

    def at_epoch_end(self, orchestrator: Driver) -> None:
        """Save if one is due at this very iteration, or if this may be the best one: its metric was measured here."""
        iteration = orchestrator.state.iteration
        due = self.unit == "iterations" and iteration % self.every == 0
        if due or (self.best is not None and orchestrator.evaluated.get(self.best.metric) == iteration):
            self(orchestrator)

    def _save_due(self, orchestrator: Driver) -> None:
        if orchestrator.state.iteration != self._begun:
            self(orchestrator)

    def at_end(self, orchestrator: Driver) -> None:
        """Training is over: what came after the last checkpoint must not be lost, nor what could not be saved then."""
        if orchestrator.state.iteration not in (0, orchestrator.saved_at()):
            self(orchestrator)

    def committed(self, orchestrator: Driver, checkpoint: Committed) -> None:
        """A checkpoint is there: remove what is neither among the newest nor the best."""
        self._last = self._clock()
        there = orchestrator.registry.committed()
        best = self.best_checkpoint(there)
        superfluous = to_prune([known.name for known in there], keep=self.keep, best=best)
        for known in there:
            if known.name in superfluous:
                orchestrator.registry.remove([known])
                orchestrator.note("CHECKPOINT_PRUNED", checkpoint=known.name)

    def best_checkpoint(self, committed: list[Committed]) -> str | None:
        """Name of the best one, if there is a metric to tell."""
        if self.best is None:
            return None
        metrics = [(checkpoint.name, checkpoint.manifest.metrics) for checkpoint in committed]
        return best_of(metrics, self.best.metric, self.best.mode)

    def _check_metric(self, metrics: Mapping[str, Any]) -> None:
        if self.best is not None and not isinstance(value := metrics.get(self.best.metric, 0), int | float):
            received, mend = f"{value!r} ({type(value).__name__})", "set it with float(...), or name another metric"
            where = f"checkpoint.best.metric {self.best.metric!r}"
            raise SpecError(explain(where, expected="a number", received=received, mend=mend))
        if self.best is None or self.best.metric in metrics or self.unit != "epochs":
            return
        name, known = self.best.metric, sorted(metrics)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, known)) or 'none'}"
        raise SpecError(_no_metric(name, hint))


def _no_metric(name: str, mend: str) -> str:
    expected = "the name of a reduced metric"
    return explain("checkpoint.best.metric", expected=expected, received=repr(name), mend=mend)


def _interval(every: object) -> tuple[str, float]:
    """(unit, number) of what was given as `every`."""
    given = every if isinstance(every, Mapping) else {"epochs": every}
    unit, number = next(iter(given.items())) if len(given) == 1 else (None, None)
    counted = isinstance(number, int) and not isinstance(number, bool) and number >= 1
    timed = unit == "seconds" and isinstance(number, float) and 0 < number < float("inf")
    if unit in _UNITS and (counted or timed):
        return str(unit), float(number)  # type: ignore[arg-type]  # it is a number by now
    raise SpecError(
        explain(
            "Checkpoint(every)",
            expected="a whole number of at least 1, or a mapping with one of epochs, iterations and seconds",
            received=repr(every),
            mend="write for example every=1 or every={'iterations': 500}",
        )
    )
