"""What an orchestrator brings to a training; made by `orchestrator.py`, used up by `training.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.bus import EventBus
from orchestrator.checkpoints.registry import Registry
from orchestrator.journal import Journal
from orchestrator.lease import Lease
from orchestrator.resume import StartFrom
from orchestrator.run import Run
from orchestrator.settings import Settings
from workers.parcels import RankHandler

__all__ = ["Parts"]


@dataclass(slots=True, kw_only=True)
class Parts:
    """The parts of one run, before it begins.

    Args:
        settings: the run's settings.
        buses: per engine, the driver's handlers.
        handlers: those that run on ranks.
        lease: the claim to the run.
        registry: the run's checkpoints.
        journal: the run's record.
        stateful: handlers of the driver whose state is in the checkpoints.
        datasets: Ray data sets by name, of which each rank gets a part.
        started: called with the run before it starts, so that its owner can give it orders.
        start_from: what a new run takes from another one.
        evaluated: metric of an evaluation → iteration at which it was measured last.
    """

    settings: Settings
    buses: Mapping[str, EventBus]
    handlers: tuple[RankHandler, ...]
    lease: Lease
    registry: Registry
    journal: Journal
    stateful: Mapping[str, Any] = field(default_factory=dict)
    datasets: Mapping[str, Any] = field(default_factory=dict)
    started: Callable[[Run], None]
    start_from: StartFrom | None = None
    evaluated: dict[str, int] = field(default_factory=dict)
