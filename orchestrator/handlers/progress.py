"""Show how training goes: a bar per epoch on a terminal, one line per epoch elsewhere.

Attached to every run by the orchestrator. It reads what ranks tell anyway, and never makes them wait.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from orchestrator.driver import Driver
from orchestrator.notice import Steady
from workers.events import Events
from workers.messages import Pulse
from workers.parcels import Number

__all__ = ["Progress"]


class _Measured(Protocol):
    samples: int
    samples_before: int

    @property
    def training_seconds(self) -> float:
        """Seconds in which the ranks trained."""
        ...


class Progress:
    """Loss and speed while training, and one line for each epoch.

    Args:
        max_epochs: epochs of the run, if it is counted in epochs.
        max_iters: iterations of the run, otherwise.
        console: where to show it; default: standard error, so that a program's own output stays clean.
    """

    def __init__(self, max_epochs: int | None, max_iters: int | None, *, console: Console | None = None) -> None:
        self.max_epochs = max_epochs
        self.max_iters = max_iters
        self._given = console
        self.console = console if console is not None else _console()
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._run: _Measured | None = None
        self._told: tuple[int, int, float] | None = None  # iteration, samples and training seconds at the last line
        self._begun = 0  # iteration at which training began
        self._pulsed: tuple[float, int] | None = None
        self._speed = 0.0

    def attach(self, orchestrator: Driver) -> None:
        """Listen to the end of epochs, behind everybody else, without making the ranks wait."""
        orchestrator.listen(Events.EPOCH_COMPLETED, self, blocking=False, phase="gate")

    def begin(self, run: _Measured, iteration: int = 0) -> None:
        """Training is about to start.

        Args:
            run: what is measured.
            iteration: where it goes on.
        """
        self._run, self._begun = run, iteration
        if self._given is None:
            self.console = _console()  # the stream of now, which the run may have put in place of the one before
        if self.console.is_terminal:
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}", markup=False),
                TextColumn("{task.fields[numbers]}", markup=False),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._bars.start()

    def pulse(self, pulses: Mapping[int, Pulse]) -> None:
        """Move the bar to what the ranks said last."""
        if self._bars is None:
            return
        self._measure(sum(pulse.samples for pulse in pulses.values()))
        first = pulses[min(pulses)]
        numbers = f"{_numbers(first.output)}  {self._speed:.0f} samples/s" if first.output else ""
        if self._task is None:
            self._task = self._bars.add_task("epoch", total=None, numbers="")
        self._bars.update(
            self._task,
            description=f"epoch {first.epoch}{self._of()}",
            completed=first.iteration,
            total=self.max_iters,
            numbers=numbers,
        )

    def __call__(self, orchestrator: Driver) -> None:
        """One line for the epoch that ended."""
        state, run = orchestrator.state, self._run
        assert run is not None, "an epoch ended before begin()"
        iteration, samples, seconds = state.iteration, run.samples, run.training_seconds
        before = self._told or (self._begun, run.samples_before, 0.0)
        steps, seen, took = iteration - before[0], samples - before[1], seconds - before[2]
        self._told = (iteration, samples, seconds)
        speed = ""
        if took > 0:
            speed = f"  {seen / took:.0f} samples/s" if seen > 0 else f"  {steps / took:.1f} iterations/s"
        measured = orchestrator.evaluated
        metrics = "".join(
            f"  {name} {_word(value)}"
            for name, value in state.metrics.items()
            if measured.get(name, iteration) == iteration  # what an earlier epoch was evaluated to is no news
        )
        self.console.print(
            f"epoch {state.epoch}{self._of()}  iteration {iteration}{metrics}{speed}  {took:.2f} s",
            markup=False,
            soft_wrap=True,
        )

    def close(self) -> None:
        """Take the bar away."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _of(self) -> str:
        return f"/{self.max_epochs}" if self.max_epochs is not None else ""

    def _measure(self, samples: int) -> None:
        now = time.monotonic()
        since, before = self._pulsed = self._pulsed or (now, samples)
        if now - since >= 1.0 or samples < before:
            self._speed = max(samples - before, 0) / max(now - since, 1e-9)
            self._pulsed = (now, samples)


def _console() -> Console:
    return Console(file=Steady(sys.stderr), highlight=False)  # type: ignore[arg-type]  # a text stream


def _numbers(output: Mapping[str, Number]) -> str:
    return "  ".join(f"{name} {number.value:.4g}" for name, number in list(output.items())[:3])


def _word(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
