"""End training when a metric gets no better. At the orchestrator it is decided once, on the metric over all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from workers.engine import Engine
from workers.events import EventExpression, Events
from workers.handlers.improvement import Improvement
from workers.handlers.ranks import Ranks, decide, interval, keep, measured, stop, text, trains_alone

__all__ = ["EarlyStopping"]


class EarlyStopping:
    """End training after so many judgements in a row without a better value.

    Where an evaluation measures the metric at some epochs only, it is judged at those. A run that was stopped stays so
    when it is started again, unless `patience` has grown.

    Args:
        metric: name of a reduced metric, such as "validation/loss".
        patience: judgements without a better value after which training ends.
        mode: "min" if a smaller value is better, "max" if a greater one is.
        min_delta: by how much it must be better.
        event: when it is judged.

    Raises:
        ValueError: an argument can't be used.

    Example:
        >>> losses = iter([3.0, 2.0, 2.0, 2.0, 1.0])
        >>> trainer = Engine(lambda engine, batch: engine.state.metrics.update(loss=next(losses)))
        >>> EarlyStopping("loss", patience=2).attach(trainer)
        >>> trainer.run([0], max_epochs=5).epoch
        4
    """

    def __init__(
        self,
        metric: str,
        *,
        patience: int = 3,
        mode: Literal["min", "max"] = "min",
        min_delta: float = 0.0,
        event: EventExpression = Events.EPOCH_COMPLETED,
    ) -> None:
        self.metric = text("EarlyStopping", "metric", metric)
        self.patience = interval("EarlyStopping", patience, "patience")
        self.event = event
        self._judged = Improvement(mode, min_delta, call="EarlyStopping")
        self._stops: Engine | None = None

    @property
    def best(self) -> float | None:
        """The best value so far."""
        return self._judged.best

    @property
    def metrics_named(self) -> tuple[str, ...]:
        """Metrics that must be there; checked when the program is built."""
        return (self.metric,)

    def attach(self, target: Engine | Ranks, *, stops: Engine | None = None) -> None:
        """Judge at the event.

        Args:
            target: the orchestrator, or the engine whose metrics are judged.
            stops: the engine that is ended, if it is another one: the trainer, where `target` evaluates.
        """
        self._stops = stops
        decide(target, self.event, self)
        decide(target, Events.RESUMED, self._end_if_over)
        if isinstance(target, Engine):
            keep(target, self)

    def __call__(self, target: Engine | Ranks) -> None:
        """Judge now.

        Raises:
            ValueError: there is no such metric, or several ranks would each decide for themselves.
        """
        trains_alone(target, "EarlyStopping")
        value = measured(target, self.metric, "EarlyStopping(metric)")
        if value is not None and not self._judged.of(value):
            self._end_if_over(target)

    def _end_if_over(self, target: Engine | Ranks) -> None:
        waited, best = self._judged.waited, self._judged.best
        if waited >= self.patience:
            told = f"{self.metric} has not got better for {waited} evaluations; the best was {best}"
            stop(self._stops or target, told)

    def state_dict(self) -> dict[str, Any]:
        """What was judged so far."""
        return self._judged.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._judged.load_state_dict(state)
