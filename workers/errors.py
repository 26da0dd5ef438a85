"""The exceptions that ranks raise, as one tree.

What is wrong with a user's input is said in four parts: where, what was expected, what was received, the
mend. The driver's own exceptions live in `orchestrator/errors.py` and grow from the same root.
"""

from __future__ import annotations

__all__ = [
    "DataLoaderEmptyError",
    "DivergedError",
    "FastForwardWarning",
    "FaultTold",
    "LeaveNow",
    "LoaderLostError",
    "ProgramError",
    "RankfireError",
    "Retreat",
    "UnreadableError",
]


class RankfireError(Exception):
    """Root of every exception that Rankfire raises on its own account."""

    refusal: bool = False
    """Whether this refuses a job as it is, so that a run which has not trained is nothing yet."""


class DataLoaderEmptyError(RankfireError):
    """The data gave no batch, at its start or when it was restarted."""


class LoaderLostError(RankfireError):
    """Loader processes die one after the other over the same batch."""


class ProgramError(RankfireError):
    """What a user's `build(worker)` did or returned can't be run."""


class DivergedError(RankfireError):
    """Ranks that should hold the same model do not."""


class UnreadableError(RankfireError):
    """A rank can't read the checkpoint that it shall take up: the storage's fault, not the user's."""


class LeaveNow(BaseException):
    """Unwinds the training thread from inside a gate; no handler and no `except Exception` of a user stops it."""


class FaultTold(LeaveNow):
    """Unwinds the training thread after a `Fault` was sent: the run is over, whatever its handlers would make of it."""


class Retreat(LeaveNow):
    """Unwinds the training thread to where it waits for the next generation: a peer was lost."""


class FastForwardWarning(RuntimeWarning):
    """Data that can't be told where to go on was read up to there."""
