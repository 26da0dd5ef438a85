"""End training as soon as a number is NaN or infinite: on all ranks after the same iteration.

On one engine it works as pytorch-ignite's handler of this name. Where several ranks train, they agree by one all-reduce
of a flag, so that none is left waiting in a collective. What the driver makes of it is in `orchestrator/guard.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

from workers.engine import Engine
from workers.events import Event, Events
from workers.finite import Leaf, has_nonfinite, name_nonfinite, numbers_in
from workers.handlers.ranks import Ranks, in_step, interval
from workers.parameters import named_parameters

__all__ = ["NOT_FINITE", "TerminateOnNan", "nonfinite_found", "nonfinite_parameters"]

NOT_FINITE = Event("NOT_FINITE")
"""Fires once, on all ranks, when a number was found that is not finite; training ends after this iteration."""

_logger = logging.getLogger(__name__)


class TerminateOnNan:
    """End training when a number is NaN or infinite.

    With `orchestrator.attach` it runs on every rank, and the parameters are looked at before each save, so that no
    checkpoint holds such a state. It may also be attached to an engine, then on every rank that trains.

    Args:
        output: takes `state.output` and gives what is looked at; default: all numbers and tensors in it.
        every: look after each so many iterations. Each time, the rank waits for what its device has been given to do.
        parameters: look at the parameters of the prepared models, and their gradients, as well.

    Raises:
        ValueError: `every` is no such number.

    Example:
        >>> trainer = Engine(lambda engine, batch: {"loss": 1.0 / batch if batch else float("nan")})
        >>> handle = trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
        >>> trainer.run([4, 2, 0, 1]).iteration
        3
    """

    def __init__(
        self, output: Callable[[Any], object] | None = None, *, every: int = 1, parameters: bool = False
    ) -> None:
        self.output = output
        self.every = interval("TerminateOnNan", every)
        self.parameters = parameters

    def attach(self, target: Engine | Ranks) -> None:
        """Run on this engine; at the orchestrator on every rank."""
        event = Events.ITERATION_COMPLETED(every=self.every)
        if isinstance(target, Engine):
            target.add_event_handler(event, self)
        else:
            target.on(event, rank="all")(self)

    def __call__(self, engine: Engine) -> None:
        """Look, agree, end."""
        state: Any = engine.state  # what was found is left there, for `nonfinite_found`
        if state.iteration % self.every:
            return
        named = list(self._looked_at(engine))
        found = has_nonfinite(leaf for _, leaf in named)
        if in_step(engine):
            worker = engine.worker
            found = worker.all_reduce(torch.as_tensor(found, dtype=torch.int64, device=worker.device), "max")
        if not bool(found):  # the one place that waits for the device
            return
        state.not_finite = name_nonfinite(named)
        if state.not_finite:
            _logger.warning("iteration %d: %s: training ends", state.iteration, state.not_finite)
        engine.terminate()
        engine.fire_event(NOT_FINITE)

    def _looked_at(self, engine: Engine) -> Iterator[tuple[str, Leaf]]:
        output = engine.state.output
        for path, leaf in numbers_in(output if self.output is None else self.output(output)):
            yield path or "output", leaf
        if self.parameters:
            yield from _parameters(engine.worker, gradients=True)


def nonfinite_found(worker: Any) -> str:
    """What this rank found just now, in words; empty if it was another rank."""
    return str(worker.program.engines["trainer"].state.get("not_finite", ""))


def nonfinite_parameters(worker: Any) -> str:
    """Which of this rank's parameters are not finite, in words; empty if none is."""
    named = list(_parameters(worker, gradients=False))
    return name_nonfinite(named) if bool(has_nonfinite(leaf for _, leaf in named)) else ""


def _parameters(worker: Any, *, gradients: bool) -> Iterator[tuple[str, Leaf]]:
    """Of the prepared models: those that train, since a frozen one may hold -inf on purpose."""
    if worker is None:
        raise ValueError(
            "TerminateOnNan(parameters=True): expected an engine with a worker, whose prepared models are looked at, "
            "received one without; set engine.worker = worker, or leave parameters out"
        )
    for name, parameter in named_parameters(worker.models, {} if worker.program is None else worker.program.state):
        if parameter.requires_grad:
            yield from numbers_in(parameter, f"parameter {name}")
            if gradients and parameter.grad is not None:
                yield from numbers_in(parameter.grad, f"gradient of {name}")
