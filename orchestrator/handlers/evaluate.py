"""A shared evaluation at the end of epochs: all ranks, each its share, once.

`evaluate:` of a job file makes one; users attach it by hand. How an evaluation is asked for is in `asking.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.driver import Driver
from orchestrator.errors import SpecError, no_engine
from workers.events import Events

__all__ = ["Evaluate"]


class Evaluate:
    """Evaluate with one engine of the program; its metrics appear as `validation/NAME`.

    Args:
        engine: name of the engine.
        every: after each so many epochs.
        prefix: what stands before the metrics' names.

    Example:
        >>> orchestrator.attach(Evaluate("evaluator", every=2))  # doctest: +SKIP
    """

    def __init__(self, engine: str = "evaluator", *, every: int = 1, prefix: str = "validation") -> None:
        self.engine = engine
        self.every = every
        self.prefix = prefix

    def attach(self, orchestrator: Driver) -> None:
        """Register; before the user's own handlers of the same event, so that they see the metrics."""
        orchestrator.listen(Events.EPOCH_COMPLETED(every=self.every), self, phase="metrics")

    def check(self, engines: Sequence[str]) -> None:
        """See that the program has the engine, as soon as the program is known.

        Raises:
            SpecError: it has not.
        """
        if self.engine not in engines:
            raise SpecError(no_engine("evaluate.engine", self.engine, engines))

    def __call__(self, orchestrator: Driver) -> None:
        """Evaluate now."""
        orchestrator.evaluate(self.engine, prefix=self.prefix)
