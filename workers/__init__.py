"""Training on one rank: an engine that fires events, and what hangs on it. Usable alone, without Ray.

Names that bring torch with them are imported on first use, so that the driver's light commands start without
it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from workers.dispatch import RemovableEventHandle
from workers.engine import Engine
from workers.errors import DataLoaderEmptyError, ProgramError, RankfireError
from workers.events import Event, EventEnum, Events
from workers.parcels import Number
from workers.program import Program
from workers.state import State

if TYPE_CHECKING:
    from workers.data.randomness import sample_rng
    from workers.handlers.check_divergence import CheckDivergence
    from workers.handlers.terminate_on_nan import TerminateOnNan
    from workers.metrics import attach_metric
    from workers.steps import (
        create_supervised_evaluator,
        create_supervised_trainer,
        supervised_eval_step,
        supervised_train_step,
    )
    from workers.worker import Worker

__all__ = [
    "CheckDivergence",
    "DataLoaderEmptyError",
    "Engine",
    "Event",
    "EventEnum",
    "Events",
    "Number",
    "Program",
    "ProgramError",
    "RankfireError",
    "RemovableEventHandle",
    "State",
    "TerminateOnNan",
    "Worker",
    "attach_metric",
    "create_supervised_evaluator",
    "create_supervised_trainer",
    "sample_rng",
    "supervised_eval_step",
    "supervised_train_step",
]

LATER = {
    "CheckDivergence": "workers.handlers.check_divergence",
    "TerminateOnNan": "workers.handlers.terminate_on_nan",
    "Worker": "workers.worker",
    "attach_metric": "workers.metrics",
    "create_supervised_evaluator": "workers.steps",
    "create_supervised_trainer": "workers.steps",
    "sample_rng": "workers.data.randomness",
    "supervised_eval_step": "workers.steps",
    "supervised_train_step": "workers.steps",
}


def __getattr__(name: str) -> object:
    """Import a name on first use (PEP 562)."""
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(LATER[name]), name)


def __dir__() -> list[str]:
    """What is imported later is there too, for who looks."""
    return sorted({*globals(), *__all__})
