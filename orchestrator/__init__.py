"""The driver's side of Rankfire: start the ranks, fire each event once, keep the checkpoints.

Errors and events are here at once; names that need torch or ray are imported on first use, so that
`rankfire validate` starts without them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from orchestrator.cluster_events import ClusterEvents
from orchestrator.errors import (
    CapacityError,
    CheckpointError,
    DivergenceError,
    GateMismatchError,
    HandlerError,
    NotFiniteError,
    RankfireError,
    RecoveryError,
    RunInterrupted,
    SpecError,
    StartError,
    SystemFailure,
    TrainingError,
    WorkerLostError,
)

if TYPE_CHECKING:
    from orchestrator.handlers import Best, Checkpoint, Evaluate
    from orchestrator.orchestrator import Orchestrator, RunResult
    from workers.handlers.check_divergence import CheckDivergence
    from workers.handlers.terminate_on_nan import TerminateOnNan

__all__ = [
    "Best",
    "CapacityError",
    "CheckDivergence",
    "Checkpoint",
    "CheckpointError",
    "ClusterEvents",
    "DivergenceError",
    "Evaluate",
    "GateMismatchError",
    "HandlerError",
    "NotFiniteError",
    "Orchestrator",
    "RankfireError",
    "RecoveryError",
    "RunInterrupted",
    "RunResult",
    "SpecError",
    "StartError",
    "SystemFailure",
    "TerminateOnNan",
    "TrainingError",
    "WorkerLostError",
]

LATER = {
    "Best": "orchestrator.handlers",
    "CheckDivergence": "workers.handlers.check_divergence",
    "Checkpoint": "orchestrator.handlers",
    "Evaluate": "orchestrator.handlers",
    "Orchestrator": "orchestrator.orchestrator",
    "RunResult": "orchestrator.orchestrator",
    "TerminateOnNan": "workers.handlers.terminate_on_nan",
}


def __getattr__(name: str) -> object:
    """Import a name on first use (PEP 562)."""
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(LATER[name]), name)


def __dir__() -> list[str]:
    """What is imported later is there too, for who looks."""
    return sorted({*globals(), *__all__})
