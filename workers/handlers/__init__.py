"""Handlers for an `Engine`, on a rank or in a notebook; the driver attaches the same: `orchestrator.attach(…)`."""

from workers.handlers.check_divergence import DIVERGED, CheckDivergence
from workers.handlers.terminate_on_nan import NOT_FINITE, TerminateOnNan

__all__ = ["DIVERGED", "NOT_FINITE", "CheckDivergence", "TerminateOnNan"]
