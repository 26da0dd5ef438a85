"""What all loggers have in common: when they are told, of what, and that a tracker that is down ends no training.

A logger says how it keeps each kind of thing; the base class hangs on the events. All of it happens on the driver.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from orchestrator.checkpoints.registry import Committed
from orchestrator.driver import Driver
from orchestrator.errors import SpecError, explain
from workers.events import Events
from workers.storage import Storage

__all__ = ["Histogram", "Logger", "histogram_of", "kept_id"]

Histogram = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""Counts, and the edges of the bins: one more."""
TRACKERS = "trackers.json"  # in a run's folder: tracker → the id that the run has there
_logger = logging.getLogger(__name__)
_of_run: WeakKeyDictionary[Driver, list[Logger]] = WeakKeyDictionary()  # loggers that are attached


class Logger:
    """Tells the metrics of a run at the ends of epochs, and between them if asked; the base of the loggers.

    Handlers of the driver may tell it more: `logger.log_image("samples", pixels)`. A subclass has `scalars`, and of the
    other methods without `log_` those for which it can keep something. What they raise is told, and training goes on.

    Args:
        every: iterations between two lines of the step's output, as `step/NAME`; None: at the ends of epochs only.
        checkpoints: keep checkpoints as artefacts, too.
        on_error: what it means that the tracker raises: "warn" goes on without, "stop" ends the run.

    Raises:
        SpecError: an argument can't be used.
    """

    file: str | None = None  # in the run's folder, if it keeps one that nobody else may write

    def __init__(
        self, *, every: int | None = None, checkpoints: bool = False, on_error: Literal["warn", "stop"] = "warn"
    ) -> None:
        where = type(self).__name__
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            expected, mend = "a whole number of iterations of at least 1, or None", "write for example every=50"
            raise SpecError(explain(f"{where}(every)", expected=expected, received=repr(every), mend=mend))
        if on_error not in ("warn", "stop"):
            mend = "write 'stop' to end the run, or leave it out"
            raise SpecError(
                explain(f"{where}(on_error)", expected="'warn' or 'stop'", received=repr(on_error), mend=mend)
            )
        self.every = every
        self.checkpoints = checkpoints
        self.on_error = on_error
        self.failed: str | None = None  # what the tracker raised last
        self._run: Driver | None = None
        self._opened = False

    # ---------------------------------------------------------------- what a handler tells
    def log(self, values: Mapping[str, float], *, iteration: int | None = None) -> None:
        """Tell numbers, beside the metrics of the run."""
        self._do("scalars", lambda: self.scalars(values, self.at(iteration), self.run.state.epoch))

    def log_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Tell settings, beside those of the run."""
        self._do("hyperparameters", lambda: self.hyperparameters(values))

    def log_image(self, name: str, image: Any, *, iteration: int | None = None) -> None:
        """Tell an image: height x width, with 1, 3 or 4 channels before or behind; 0 to 255, or 0.0 to 1.0."""
        self._do("image", lambda: self.image(name, image, self.at(iteration)))

    def log_histogram(self, name: str, values: Any, *, bins: int = 64, iteration: int | None = None) -> None:
        """Tell how often values fall into so many bins."""
        self._do("histogram", lambda: self.histogram(name, values, self.at(iteration), bins))

    def log_figure(self, name: str, figure: Any, *, iteration: int | None = None) -> None:
        """Tell a figure of matplotlib."""
        self._do("figure", lambda: self.figure(name, figure, self.at(iteration)))

    def log_artifact(self, url: str, *, name: str) -> None:
        """Tell of a folder, which is kept under that name."""
        self._do("artifact", lambda: self.artifact(url, name))

    # ---------------------------------------------------------------- how a tracker keeps it
    def open(self, iteration: int) -> None:
        """Begin, or go on after so many iterations: what was told of later ones is told again."""

    def scalars(self, values: Mapping[str, float], iteration: int, epoch: int) -> None:
        """Keep numbers."""
        raise NotImplementedError

    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Keep settings."""

    def image(self, name: str, image: Any, iteration: int) -> None:
        """Keep an image."""
        raise NotImplementedError

    def histogram(self, name: str, values: Any, iteration: int, bins: int) -> None:
        """Keep a histogram."""
        raise NotImplementedError

    def figure(self, name: str, figure: Any, iteration: int) -> None:
        """Keep a figure."""
        raise NotImplementedError

    def artifact(self, url: str, name: str) -> None:
        """Keep a folder."""
        raise NotImplementedError

    def close(self, status: str) -> None:
        """The run has ended: "completed", "terminated", "interrupted" or "failed"."""

    # ---------------------------------------------------------------- when
    def attach(self, orchestrator: Driver) -> None:
        """Listen behind everybody else; no rank waits for a logger, but at the start of training.

        Raises:
            SpecError: it is attached already, or another logger of the run keeps the same file.
        """
        others = _of_run.setdefault(orchestrator, [])
        for other in others:
            if other is self or (self.file is not None and other.file == self.file):
                where, received = f"orchestrator.attach({type(self).__name__})", "this one once more"
                if other is not self:
                    received = f"a second one for {self.file}"
                expected, mend = "each logger once, and one for each file", "attach one, and set its every="
                raise SpecError(explain(where, expected=expected, received=received, mend=mend))
        others.append(self)
        self._run = orchestrator
        orchestrator.listen(Events.STARTED | Events.RESUMED, self._begin, phase="metrics", blocking=True)
        orchestrator.listen(Events.EPOCH_COMPLETED, self._at_epoch, phase="gate", blocking=False)
        if self.every is not None:
            event = Events.ITERATION_COMPLETED(every=self.every)
            orchestrator.listen(event, self._at_iteration, phase="gate", blocking=False)

    def committed(self, orchestrator: Driver, checkpoint: Committed) -> None:
        """A checkpoint is there."""
        if self.checkpoints:
            self.log_artifact(checkpoint.url, name=checkpoint.name)

    def ended(self, status: str) -> None:
        """Called by the orchestrator when the run has ended, however it did."""
        if self._opened:
            self._opened = False
            self._told("close", lambda: self.close(status), raises=False)

    @property
    def run(self) -> Driver:
        """The orchestrator that it is attached to.

        Raises:
            SpecError: it is attached to none.
        """
        if self._run is None:
            where, mend = type(self).__name__, "write orchestrator.attach(logger) first"
            expected, received = "a logger that is attached", "one that is not"
            raise SpecError(explain(where, expected=expected, received=received, mend=mend))
        return self._run

    def at(self, iteration: int | None) -> int:
        """The iteration that was given, else the present one."""
        return self.run.state.iteration if iteration is None else iteration

    def _begin(self, orchestrator: Driver) -> None:
        if self._opened:
            return
        settings, state = orchestrator.settings, orchestrator.state

        def begin() -> None:
            self.open(state.iteration)
            self._opened = True
            known = {"run": settings.run, "seed": settings.seed, "world_size": settings.world_size}
            self.hyperparameters({**known, **_flat(settings.config)})

        self._told("open", begin)

    def _at_epoch(self, orchestrator: Driver) -> None:
        state = orchestrator.state
        self._tell(_numbers(orchestrator), state.iteration, state.epoch)

    def _at_iteration(self, orchestrator: Driver) -> None:
        state = orchestrator.state
        output = {f"step/{name}": value for name, value in (state.output or {}).items()}
        beside = {name: value for name, value in _numbers(orchestrator).items() if name not in orchestrator.evaluated}
        self._tell({**beside, **output}, state.iteration, state.epoch)

    def _tell(self, values: Mapping[str, float], iteration: int, epoch: int) -> None:
        if values:
            self._do("scalars", lambda: self.scalars(values, iteration, epoch))

    def _do(self, what: str, act: Callable[[], None]) -> None:
        """Act, if the tracker is there; before training begins, and after a tracker refused to, nothing is kept."""
        assert self.run is not None, "it raises where it is attached to nothing"
        if self._opened:
            self._told(what, act)

    def _told(self, what: str, act: Callable[[], None], *, raises: bool = True) -> None:
        """Act; that a tracker refuses is told once for each reason, and ends the run only if it shall."""
        try:
            act()
        except SpecError:
            raise
        except Exception as error:  # whatever a client library raises
            text = f"{type(self).__name__}.{what}: {type(error).__name__}: {error}"
            if raises and self.on_error == "stop":
                raise
            if text != self.failed:
                self.failed = text
                _logger.warning("%s; training goes on without it", text)


def histogram_of(values: Any, bins: int) -> Histogram:
    """Counts and edges.

    Example:
        >>> [part.tolist() for part in histogram_of([0.0, 0.1, 1.0], 2)]
        [[2, 1], [0.0, 0.5, 1.0]]
    """
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float64).ravel()
    counts, edges = np.histogram(array[np.isfinite(array)], bins=bins)
    return counts, edges


def kept_id(home: Storage, tracker: str, make: Callable[[], str] = lambda: uuid.uuid4().hex) -> str:
    """The id that a run has at a tracker: made when it is first asked for, then the same after every resume.

    Args:
        home: the run's folder; what is moved aside with it has its id no more.
        tracker: its name.
        make: makes an id.
    """
    known: dict[str, str] = json.loads(home.read(TRACKERS)) if home.exists(TRACKERS) else {}
    if tracker not in known:
        known[tracker] = make()
        home.replace(TRACKERS, json.dumps(known).encode())
    return known[tracker]


def _numbers(orchestrator: Driver) -> dict[str, float]:
    """The metrics of this moment: what an evaluation measured at another iteration is no news."""
    now, measured = orchestrator.state.iteration, orchestrator.evaluated
    return {
        name: float(value)
        for name, value in orchestrator.state.metrics.items()
        if isinstance(value, int | float) and measured.get(name, now) == now
    }


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings one level deep: `optimizer.lr`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
