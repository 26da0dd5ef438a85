"""An exponentially weighted average over iterations, the same for any number of ranks.

It is attached like a metric, `attach_metric(engine, "loss", RunningAverage(), output=…)`, and goes on over epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from workers.parcels import Number

if TYPE_CHECKING:
    from workers.engine import Engine

__all__ = ["AttachedAverage", "RunningAverage"]


class RunningAverage:
    """Average a number over the last iterations: those long ago count less and less.

    Samples count, not batches, so the average over several ranks is that of one process on all their batches.

    Args:
        alpha: how much of the average stays at each iteration; 0.98 looks back over about 50.

    Raises:
        ValueError: it is not between 0 and 1.

    Example:
        >>> from workers import Engine, attach_metric
        >>> trainer = Engine(lambda engine, batch: batch)
        >>> attach_metric(trainer, "loss", RunningAverage(0.5))
        >>> trainer.run([1.0, 1.0, 4.0]).metrics["loss"]
        2.7142857142857144
    """

    def __init__(self, alpha: float = 0.98) -> None:
        if not isinstance(alpha, float) or not 0.0 <= alpha < 1.0:
            raise ValueError(
                f"RunningAverage(alpha): expected a number from 0 to 1, without 1, received {alpha!r}; write for "
                "example alpha=0.98"
            )
        self.alpha = alpha


class AttachedAverage:
    """A running average on one engine; made by `attach_metric`.

    Args:
        name: in `state.metrics`.
        alpha: how much of the average stays.
        measured: takes `state.output` and gives the number.
    """

    def __init__(self, name: str, alpha: float, measured: Callable[[object], object]) -> None:
        self.name = name
        self.alpha = alpha
        self.samples: Callable[[], int] | None = None  # of this rank in the current batch
        self._measured = measured
        self._sum: Any = 0.0  # on the device, where the numbers are
        self._weight = 0.0

    def reset(self) -> None:
        """Forget what was seen."""
        self._sum, self._weight = 0.0, 0.0

    def update(self, engine: Engine) -> None:
        """Take in the output of the iteration that just ended, and tell the average; nobody waits for the device."""
        samples = 1 if self.samples is None else self.samples()
        self._sum, self._weight = self._sum * self.alpha, self._weight * self.alpha
        if samples:  # else a stand-in batch, there only so that this rank takes part in the step
            value = self._measured(engine.state.output)
            value = value.detach() if isinstance(value, torch.Tensor) else value
            self._sum, self._weight = self._sum + samples * value, self._weight + samples  # type: ignore[operator]
        if self.updated:
            average = self._sum / self._weight
            engine.state.metrics[self.name] = average

    @property
    def updated(self) -> bool:
        """Whether it has seen anything."""
        return self._weight > 0.0

    def pack(self) -> Number:
        """This rank's average, with the weight of its samples."""
        return Number(value=float(self._sum / self._weight), count=self._weight)

    def state_dict(self) -> dict[str, float]:
        """The average so far."""
        return {"sum": float(self._sum), "weight": self._weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._sum, self._weight = state["sum"], state["weight"]
