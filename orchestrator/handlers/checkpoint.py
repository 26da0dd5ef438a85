"""Save a checkpoint at the end of epochs, keep the newest ones and the best one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.checkpoints.registry import Committed
from orchestrator.checkpoints.retention import best_of, to_prune
from orchestrator.driver import Driver
from orchestrator.errors import SpecError
from workers.events import Events

__all__ = ["Best", "Checkpoint"]


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
            raise SpecError(f"Best(mode): expected 'max' or 'min', received {self.mode!r}")


class Checkpoint:
    """Save at the end of epochs, after all other handlers of the same event.

    Args:
        every: after each so many epochs.
        keep: how many of the newest stay.
        best: one more stays: the best by a reduced metric.

    Example:
        >>> orchestrator.attach(Checkpoint(every=1, keep=3, best=Best("validation/accuracy")))  # doctest: +SKIP
    """

    def __init__(self, *, every: int = 1, keep: int = 3, best: Best | None = None) -> None:
        for name, value in (("every", every), ("keep", keep)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SpecError(f"Checkpoint({name}): expected a whole number of at least 1, received {value!r}")
        self.every = every
        self.keep = keep
        self.best = best

    def attach(self, orchestrator: Driver) -> None:
        """Register behind the user's handlers, so that what they measure is in the checkpoint."""
        orchestrator.listen(Events.EPOCH_COMPLETED(every=self.every), self, phase="gate")

    def __call__(self, orchestrator: Driver) -> None:
        """Save now, then remove what need not be kept."""
        orchestrator.checkpoint()
        self._check_metric(orchestrator.metrics)
        self.prune(orchestrator)

    def prune(self, orchestrator: Driver) -> None:
        """Remove what is neither among the newest nor the best."""
        committed = orchestrator.registry.committed()
        best = self.best_checkpoint(committed)
        superfluous = to_prune([checkpoint.name for checkpoint in committed], keep=self.keep, best=best)
        gone = [checkpoint for checkpoint in committed if checkpoint.name in superfluous]
        orchestrator.registry.remove(gone)
        for checkpoint in gone:
            orchestrator.note("CHECKPOINT_PRUNED", checkpoint=checkpoint.name)

    def best_checkpoint(self, committed: list[Committed]) -> str | None:
        """Name of the best one, if there is a metric to tell."""
        if self.best is None:
            return None
        metrics = [(checkpoint.name, checkpoint.manifest.metrics) for checkpoint in committed]
        return best_of(metrics, self.best.metric, self.best.mode)

    def _check_metric(self, metrics: Mapping[str, Any]) -> None:
        if self.best is None or self.best.metric in metrics:
            return
        name, known = self.best.metric, sorted(metrics)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, known)) or 'none'}"
        raise SpecError(f"checkpoint.best.metric: expected the name of a reduced metric, received {name!r}; {hint}")
