"""Look for a learning rate before training: a few steps with ever greater ones, undone afterwards (L. Smith, 2015).

All ranks take the steps together, and look at the loss over all of them, so that they come to one answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from workers.engine import Engine
from workers.events import Events
from workers.finite import numbers_in
from workers.handlers.ranks import Ranks, in_step, interval, number
from workers.handlers.rates import optimizer_of, set_found, set_rates
from workers.handlers.trial import BeforeTraining, data_of, state_of, undone
from workers.parcels import TRAINER

__all__ = ["LRFinder"]

SMOOTHING = 0.9  # share of the loss so far in the smoothed loss, as in Smith's and Howard's


class LRFinder(BeforeTraining):
    """Find a learning rate: the one at which the loss falls most steeply while the rate grows exponentially.

    It looks once, before the first epoch; not where a run goes on.

    Args:
        lowest: rate of the first step.
        highest: rate of the last one.
        iterations: how many steps.
        diverged: the search ends where the smoothed loss is so many times the least one.
        loss: takes `state.output` and gives the loss; default: the first number in it.
        apply: whether training begins with the rate that was found.
        optimizer: its name in `Program.state`; for an engine alone the optimizer itself.

    Attributes:
        suggestion: the rate that was found; None before the search, and if the loss never fell.
        rates: that were tried.
        losses: the smoothed loss at each of them.

    Raises:
        ValueError: an argument can't be used.

    Example:
        >>> orchestrator.attach(LRFinder(1e-6, 1.0))  # doctest: +SKIP
    """

    def __init__(
        self,
        lowest: float = 1e-6,
        highest: float = 1.0,
        *,
        iterations: int = 100,
        diverged: float = 4.0,
        loss: Callable[[Any], Any] | None = None,
        apply: bool = True,
        optimizer: Optimizer | str = "optimizer",
    ) -> None:
        self.lowest = number("LRFinder", "lowest", lowest, least=1e-30)
        self.highest = number("LRFinder", "highest", highest, least=1e-30)
        if highest < lowest:
            raise ValueError(
                f"LRFinder(highest): expected a rate not below the lowest, which is {lowest!r}, received {highest!r}; "
                "write the lowest first"
            )
        self.iterations = interval("LRFinder", iterations, "iterations")
        self.diverged = number("LRFinder", "diverged", diverged, least=1.0)
        self.loss = loss
        self.apply = apply
        self.optimizer = optimizer
        self.suggestion: float | None = None
        self.rates: list[float] = []
        self.losses: list[float] = []

    def __call__(self, target: Engine | Ranks) -> None:
        """Look now."""
        if isinstance(target, Engine):
            self._search(target)
        else:
            self.suggestion, self.rates, self.losses = target.call(_search_on, self)[0]
            target.note("LEARNING_RATE_FOUND", rate=self.suggestion, tried=len(self.rates))

    def _search(self, engine: Engine) -> None:
        optimizer = optimizer_of(engine, self.optimizer)
        growth = (self.highest / self.lowest) ** (1.0 / max(self.iterations - 1, 1))
        self.rates, self.losses, self._mean = [], [], 0.0
        with undone(engine, state_of(engine, self._state, "LRFinder")) as trial:
            trial.add_event_handler(Events.ITERATION_STARTED, lambda: self._next(optimizer, growth))
            trial.add_event_handler(Events.ITERATION_COMPLETED, lambda: self._look(engine, trial))
            trial.run(data_of(engine, "LRFinder"), max_iters=self.iterations)
        self.suggestion = steepest(self.rates[: len(self.losses)], self.losses)
        if self.apply and self.suggestion is not None:
            set_found(optimizer, self.suggestion)

    def _next(self, optimizer: Optimizer, growth: float) -> None:
        self.rates.append(self.lowest * growth ** len(self.rates))
        set_rates(optimizer, [self.rates[-1]] * len(optimizer.param_groups))

    def _look(self, engine: Engine, trial: Engine) -> None:
        output = trial.state.output
        given = output if self.loss is None else self.loss(output)
        loss = next((float(leaf) for _, leaf in numbers_in(given)), None)  # type: ignore[arg-type]  # one number
        if loss is None:
            raise ValueError(
                f"LRFinder(loss): expected a number in the output, received {type(given).__name__}; give loss=, which "
                "takes it out of the output"
            )
        if in_step(engine):
            loss = engine.worker.all_reduce(loss, "mean")
        count = len(self.losses) + 1
        self._mean = SMOOTHING * self._mean + (1.0 - SMOOTHING) * loss
        smooth = self._mean / (1.0 - SMOOTHING**count)
        self.losses.append(smooth)
        if not math.isfinite(loss) or smooth > self.diverged * min(self.losses):
            trial.terminate()


def steepest(rates: list[float], losses: list[float]) -> float | None:
    """The rate in the middle of the stretch in which the loss falls most steeply; None if it never falls.

    A stretch is a fifth of all steps, at least three, and its slope that of the line which fits it best: single steps
    differ as much as their batches do.

    Example:
        >>> steepest([1e-4, 1e-3, 1e-2, 1e-1], [1.0, 0.9, 0.5, 0.1])
        0.01
    """
    size = max(3, len(losses) // 5)
    middle = (size - 1) / 2
    best, found = 0.0, None
    for first in range(len(losses) - size + 1):
        slope = sum((step - middle) * losses[first + step] for step in range(size))
        if slope < best:  # of nan it is not true
            best, found = slope, rates[first + size // 2]
    return found


def _search_on(worker: Any, finder: LRFinder) -> tuple[float | None, list[float], list[float]]:
    """The search on one rank; for `orchestrator.call`."""
    finder._search(worker.program.engines[TRAINER])
    return finder.suggestion, finder.rates, finder.losses
