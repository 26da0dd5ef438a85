"""Learning-rate schedules: any scheduler of torch, with a warm-up, stepped beside the model on every rank.

All ranks step alike, so nothing is sent. The place in the schedule is saved with the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from workers.engine import Engine
from workers.events import EventExpression, Events
from workers.handlers.ranks import Ranks, count, keep
from workers.handlers.rates import found_rates, optimizer_of, rates_of, set_rates

__all__ = ["LRSchedule"]


class LRSchedule:
    """Step a scheduler of torch, after a linear warm-up.

    The rate of the first parameter group is in `state.metrics["lr"]`.

    Args:
        scheduler: makes it: `lambda optimizer: CosineAnnealingLR(optimizer, T_max=1000)`; None: the rate stays as it is
            after the warm-up.
        event: when it is stepped; `Events.EPOCH_COMPLETED` for one that counts epochs.
        warm_up: so many of the first steps (iterations, or what `event` is) lead linearly to the rate at which the
            scheduler begins.
        optimizer: its name in `Program.state`; for an engine alone the optimizer itself.

    Raises:
        ValueError: `warm_up` or what makes the scheduler can't be used, or there is no such optimizer.

    Example:
        >>> cosine = LRSchedule(lambda optimizer: CosineAnnealingLR(optimizer, 10_000), warm_up=500)  # doctest: +SKIP
        >>> orchestrator.attach(cosine)  # doctest: +SKIP
    """

    def __init__(
        self,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        *,
        event: EventExpression = Events.ITERATION_COMPLETED,
        warm_up: int = 0,
        optimizer: Optimizer | str = "optimizer",
    ) -> None:
        self.make = scheduler
        self.event = event
        self.warm_up = count("LRSchedule", "warm_up", warm_up)
        self.optimizer = optimizer
        self.steps = 0
        self._scheduler: LRScheduler | None = None
        self._optimizer: Optimizer
        self._starts: list[float] = []  # rates at which the scheduler begins

    def attach(self, target: Engine | Ranks) -> None:
        """Make the scheduler, and step it at the event; at the orchestrator: on every rank."""
        if not isinstance(target, Engine):
            target.send(self)
            return
        self._optimizer = optimizer_of(target, self.optimizer)
        self._scheduler = None if self.make is None else self._made(self.make(self._optimizer))
        self._starts = rates_of(self._optimizer)
        target.add_event_handler(Events.STARTED, self._begin)
        target.add_event_handler(Events.EPOCH_STARTED(once=1), self._take_found)
        target.add_event_handler(self.event, self)
        keep(target, self)

    def __call__(self, engine: Engine) -> None:
        """One step."""
        self.steps += 1
        if self.steps <= self.warm_up:
            self._warm(self.steps)
        elif self._scheduler is not None:
            self._scheduler.step()
        engine.state.metrics["lr"] = float(self._optimizer.param_groups[0]["lr"])

    @staticmethod
    def _made(scheduler: object) -> LRScheduler:
        if not isinstance(scheduler, LRScheduler):
            raise ValueError(
                f"LRSchedule(scheduler): expected a function that makes a scheduler of torch, received one that gives "
                f"{scheduler!r:.80} ({type(scheduler).__name__}); write for example lambda optimizer: "
                "CosineAnnealingLR(optimizer, 1000)"
            )
        return scheduler

    def _begin(self, engine: Engine) -> None:
        if self.warm_up:
            self._warm(0)

    def _take_found(self, engine: Engine) -> None:
        """Begin with the rates that an LRFinder found, which looks when the run has started."""
        found = found_rates(self._optimizer)
        if found is None or self.steps:
            return
        set_rates(self._optimizer, found)
        if self.make is not None:
            for group in self._optimizer.param_groups:
                group.pop("initial_lr", None)  # a scheduler would begin there
            self._scheduler = self._made(self.make(self._optimizer))
        self._starts = rates_of(self._optimizer)
        self._begin(engine)

    def _warm(self, done: int) -> None:
        share = min((done + 1) / self.warm_up, 1.0)
        set_rates(self._optimizer, [rate * share for rate in self._starts])

    def state_dict(self) -> dict[str, Any]:
        """The place in the schedule."""
        scheduler = None if self._scheduler is None else self._scheduler.state_dict()
        return {"steps": self.steps, "starts": self._starts, "scheduler": scheduler}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.steps, self._starts = state["steps"], list(state["starts"])
        if self._scheduler is not None and state["scheduler"] is not None:
            self._scheduler.load_state_dict(dict(state["scheduler"]))
