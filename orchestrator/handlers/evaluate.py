"""A shared evaluation at the end of epochs: all ranks, each its share, once.

`evaluate:` of a job file makes one; users attach it by hand. How an evaluation is asked for is in `asking.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from orchestrator.driver import Driver
from orchestrator.errors import SpecError, explain, no_engine
from workers.events import Events

__all__ = ["Evaluate", "refuse_slip"]

SLIP = 0.8  # how much alike two names are if one was probably meant to be the other


class Evaluate:
    """Evaluate with one engine of the program; its metrics appear as `validation/NAME`.

    Args:
        engine: name of the engine.
        every: after each so many epochs.
        prefix: what stands before the metrics' names.

    Raises:
        SpecError: `every` is no such number.

    Example:
        >>> orchestrator.attach(Evaluate("evaluator", every=2))  # doctest: +SKIP
    """

    def __init__(self, engine: str = "evaluator", *, every: int = 1, prefix: str = "validation") -> None:
        self.engine = engine
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            expected, mend = "a whole number of epochs of at least 1", "write for example every=2"
            raise SpecError(explain("Evaluate(every)", expected=expected, received=repr(every), mend=mend))
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


def refuse_slip(where: str, metric: str, measured: Mapping[str, Sequence[str]]) -> None:
    """Look for a slip in the name of a metric that a handler waits for, before anything is trained.

    Args:
        where: the argument that holds it, for the error.
        metric: the name.
        measured: what stands before the metrics' names, of each evaluation that will be made → its metrics.

    Raises:
        SpecError: it is very like a metric that will be there, and is none; names what was probably meant.
    """
    prefix, _, name = metric.partition("/")
    known = measured.get(prefix, ())
    if name not in known and (near := difflib.get_close_matches(name, known, n=1, cutoff=SLIP)):
        mend = f"did you mean {f'{prefix}/{near[0]}'!r}?"
        raise SpecError(explain(where, expected="the name of a reduced metric", received=repr(metric), mend=mend))
