"""Lower learning rates when a metric gets no better: decided once, on the reduced metric, done on all ranks alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch.optim import Optimizer

from workers.engine import Engine
from workers.events import EventExpression, Events
from workers.handlers.improvement import Improvement
from workers.handlers.ranks import Ranks, count, decide, interval, keep, measured, number, text, trains_alone
from workers.handlers.rates import optimizer_of, rates_of, scale_rates, set_rates

__all__ = ["ReduceLROnPlateau"]


class ReduceLROnPlateau:
    """Multiply learning rates by a factor after so many judgements in a row without a better value.

    It is saved like every handler; the rates are the optimizer's, and saved with it.

    Args:
        metric: name of a reduced metric, such as "validation/loss".
        factor: what the rates are multiplied by.
        patience: judgements without a better value after which that happens.
        mode: "min" if a smaller value is better, "max" if a greater one is.
        min_delta: by how much it must be better.
        cooldown: judgements after a reduction that are not counted.
        min_lr: rates do not fall below.
        optimizer: its name in `Program.state`; for an engine alone the optimizer itself.
        event: when it is judged.

    Raises:
        ValueError: an argument can't be used.

    Example:
        >>> orchestrator.attach(ReduceLROnPlateau("validation/loss", factor=0.5, patience=2))  # doctest: +SKIP
    """

    def __init__(  # noqa: PLR0913 - those of torch's scheduler of this name
        self,
        metric: str,
        *,
        factor: float = 0.1,
        patience: int = 10,
        mode: Literal["min", "max"] = "min",
        min_delta: float = 0.0,
        cooldown: int = 0,
        min_lr: float = 0.0,
        optimizer: Optimizer | str = "optimizer",
        event: EventExpression = Events.EPOCH_COMPLETED,
    ) -> None:
        call = type(self).__name__
        self.metric = text(call, "metric", metric)
        self.factor = number(call, "factor", factor, least=0.0, below=1.0)
        self.patience = interval(call, patience, "patience")
        self.cooldown = count(call, "cooldown", cooldown)
        self.min_lr = number(call, "min_lr", min_lr, least=0.0)
        self.optimizer = optimizer
        self.event = event
        self._judged = Improvement(mode, min_delta, call=call)
        self._cooling = 0

    @property
    def metrics_named(self) -> tuple[str, ...]:
        """Metrics that must be there; checked when the program is built."""
        return (self.metric,)

    def attach(self, target: Engine | Ranks) -> None:
        """Judge at the event."""
        decide(target, self.event, self)
        if isinstance(target, Engine):
            keep(target, self)

    def __call__(self, target: Engine | Ranks) -> None:
        """Judge now.

        Raises:
            ValueError: there is no such metric or optimizer, or several ranks would each decide for themselves.
        """
        trains_alone(target, "ReduceLROnPlateau")
        value = measured(target, self.metric, "ReduceLROnPlateau(metric)")
        if value is None:
            return
        better = self._judged.of(value)
        if self._cooling:
            self._cooling -= 1
            self._judged.waited = 0
        elif not better and self._judged.waited >= self.patience:
            self._judged.waited, self._cooling = 0, self.cooldown
            self._reduce(target)

    def _reduce(self, target: Engine | Ranks) -> None:
        if isinstance(target, Engine):
            optimizer = optimizer_of(target, self.optimizer)
            set_rates(optimizer, [max(rate * self.factor, self.min_lr) for rate in rates_of(optimizer)])
            return
        rates = target.call(scale_rates, self.optimizer, self.factor, self.min_lr)[0]
        target.note("LEARNING_RATE_REDUCED", metric=self.metric, best=self._judged.best, rates=rates)

    def state_dict(self) -> dict[str, Any]:
        """What was judged so far."""
        return {**self._judged.state_dict(), "cooling": self._cooling}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._judged.load_state_dict(state)
        self._cooling = state["cooling"]
