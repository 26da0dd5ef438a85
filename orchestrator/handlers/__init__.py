"""Handlers that make sense on the driver only: attach one with `orchestrator.attach(…)`.

They know the orchestrator as a `Driver` (`driver.py`) and use nothing of it that a user's handler could not.
"""

from orchestrator.handlers.checkpoint import Best, Checkpoint
from orchestrator.handlers.evaluate import Evaluate
from orchestrator.handlers.progress import Progress

__all__ = ["Best", "Checkpoint", "Evaluate", "Progress"]
