"""An exponential moving average of a model's weights: updated beside the model on every rank, used where it evaluates.

Only parameters are averaged: buffers are the model's own. The averaged weights are an entry of `Program.state`, so they
go into snapshots and checkpoints as the model's do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from workers.engine import Engine
from workers.events import Events
from workers.handlers.ranks import Ranks, interval, number
from workers.sharded import held

__all__ = ["EMA", "AveragedWeights"]

_runs_with: WeakKeyDictionary[Engine, list[AveragedWeights]] = WeakKeyDictionary()  # evaluator → its averages


class AveragedWeights:
    """Averages of a model's trained parameters, by their names."""

    def __init__(self, model: nn.Module) -> None:
        trained: dict[str, torch.Tensor] = {
            name: p for name, p in model.named_parameters() if p.requires_grad and p.is_floating_point()
        }
        self._names, self._living = list(trained), list(trained.values())
        self.averages = [parameter.detach().clone() for parameter in self._living]  # sharded as the parameters are
        self.swapped = False  # whether the model holds the averages at the moment, and this the weights

    @torch.no_grad()
    def follow(self) -> None:
        """Become the model's weights as they are."""
        torch._foreach_copy_(held(self.averages), held(self._living))

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move towards the model's weights by `1 - decay` of the way."""
        torch._foreach_lerp_(held(self.averages), held(self._living), 1.0 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages and the model's weights, in place."""
        averages, living = held(self.averages), held(self._living)
        kept = [weight.clone() for weight in living]
        torch._foreach_copy_(living, averages)
        torch._foreach_copy_(averages, kept)
        self.swapped = not self.swapped

    def shares_with(self, other: AveragedWeights) -> bool:
        """Whether both average a parameter, so that only one of them may stand in for it."""
        return not {id(weight) for weight in self._living}.isdisjoint(id(weight) for weight in other._living)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averages by name."""
        return dict(zip(self._names, self.averages, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave; the model holds its own weights."""
        for name, average in zip(self._names, self.averages, strict=True):
            average.copy_(state[name])
        self.swapped = False


class EMA:
    """Average a model's weights exponentially, and evaluate with the averages.

    At each update an average becomes `decay * average + (1 - decay) * weight`.

    Args:
        model: its name in `Program.state`; for an engine alone the model itself.
        decay: how much of the average stays at each update.
        every: iterations between two updates.
        evaluators: name or names of engines that run with the averages in the model's place; default: the one called
            "evaluator", where there is one. Of several averages of one model, one may have it: the others take ().
        entry: under which name the averages are saved.

    Raises:
        ValueError: an argument can't be used, there is no such model or engine, or an engine runs with other averages
            of the model.

    Example:
        >>> orchestrator.attach(EMA(decay=0.999))  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module | str = "model",
        *,
        decay: float = 0.999,
        every: int = 1,
        evaluators: str | Sequence[str] | None = None,
        entry: str = "ema",
    ) -> None:
        self.model = model
        self.decay = number("EMA", "decay", decay, least=0.0, below=1.0)
        self.every = interval("EMA", every)
        self.evaluators = (evaluators,) if isinstance(evaluators, str) else evaluators
        self.entry = entry
        self.weights: AveragedWeights | None = None  # from `attach` on

    def attach(self, target: Engine | Ranks, *evaluators: Engine) -> None:
        """Average from now on.

        Args:
            target: the orchestrator: on every rank; or the engine that trains.
            evaluators: engines that run with the averages, beside those that have names.
        """
        if not isinstance(target, Engine):
            target.send(self)
            return
        weights = self.weights = AveragedWeights(self._model_of(target))
        program = None if target.worker is None else target.worker.program
        evaluators += self._named({} if program is None else program.engines)
        for evaluator in evaluators:
            self._refuse_second(evaluator, weights)
        if program is not None:
            if self.entry in program.state:
                raise ValueError(
                    f"EMA(entry): expected a name that is free in Program.state, received {self.entry!r}; choose "
                    "another"
                )
            program.state = {**program.state, self.entry: weights}
        target.add_phase_handler("metrics", Events.STARTED, weights.follow)
        target.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), weights.update, self.decay)
        for evaluator in evaluators:
            _runs_with.setdefault(evaluator, []).append(weights)
            evaluator.add_phase_handler("metrics", Events.STARTED, self._into, weights, True)
            evaluator.add_phase_handler(
                "metrics", Events.COMPLETED | Events.EXCEPTION_RAISED, self._into, weights, False
            )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this block the model has the averaged weights.

        Raises:
            RuntimeError: nothing was averaged yet.
        """
        if self.weights is None:
            raise RuntimeError("EMA.averaged(): expected it to be attached, received one that is not; attach it first")
        self._into(self.weights, True)
        try:
            yield
        finally:
            self._into(self.weights, False)

    def _named(self, engines: Mapping[str, Engine]) -> tuple[Engine, ...]:
        if self.evaluators is None:
            return tuple(engine for name, engine in engines.items() if name == "evaluator")
        if missing := [name for name in self.evaluators if name not in engines]:
            there = ", ".join(map(repr, engines)) or "none; give an engine alone to attach(trainer, evaluator)"
            raise ValueError(
                f"EMA(evaluators): expected names of the program's engines, received {missing[0]!r}; there are {there}"
            )
        return tuple(engines[name] for name in self.evaluators)

    def _refuse_second(self, evaluator: Engine, weights: AveragedWeights) -> None:
        """Two could not both stand in for the model, nor give it back in the right order."""
        if any(weights.shares_with(other) for other in _runs_with.get(evaluator, ())):
            raise ValueError(
                f"EMA(evaluators): expected one average of a model for each engine that evaluates, received a second "
                f"one ({self.entry!r}) for the same engine; write EMA(…, evaluators=()) for one of them, and evaluate "
                "with it inside averaged()"
            )

    @staticmethod
    def _into(weights: AveragedWeights, averages: bool) -> None:
        if weights.swapped != averages:
            weights.swap()

    def _model_of(self, engine: Engine) -> nn.Module:
        if isinstance(self.model, nn.Module):
            return self.model
        state: Mapping[str, Any] = {} if engine.worker is None else engine.worker.program.state
        if not isinstance(state.get(self.model), nn.Module):
            there = ", ".join(repr(name) for name, entry in state.items() if isinstance(entry, nn.Module)) or "none"
            raise ValueError(
                f"EMA(model): expected a model, or the name of one in Program.state, received {self.model!r}; there "
                f"are {there}"
            )
        found: nn.Module = state[self.model]
        return found
