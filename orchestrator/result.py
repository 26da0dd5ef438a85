"""How a run ended, as a value: what `orchestrator.run` returns where nothing was raised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.errors import TrainingError
from workers.state import State

__all__ = ["RunResult", "Status"]

Status = Literal["completed", "terminated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a run ended.

    Attributes:
        status: "completed", or "terminated" if a handler ended it before the goal, on the driver or on the ranks, or a
            number was not finite.
        state: the trainer's state as the driver knows it.
        metrics: the last reduced metrics.
        checkpoint: path of the newest checkpoint, or None.
        reason: why it was terminated, or None.
        failure: the error with which `rankfire run` ends where training failed though nothing raised, or None.
    """

    status: Status
    state: State
    metrics: dict[str, Any]
    checkpoint: str | None
    reason: str | None = None
    failure: TrainingError | None = None
