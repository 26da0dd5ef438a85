"""Handlers that make sense on the driver only."""

from orchestrator.handlers.checkpoint import Best, Checkpoint
from orchestrator.handlers.evaluate import Evaluate
from orchestrator.handlers.progress import Progress

__all__ = ["Best", "Checkpoint", "Evaluate", "Progress"]
