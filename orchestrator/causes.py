"""Why a worker was lost, from the words in which the loss was told. Pure; each cause has a budget of its own.

Used by `recovery.py` to charge a loss, and by `reserves.py` to tell that of a spare.
"""

from __future__ import annotations

import re
from typing import Literal

__all__ = ["APART", "Cause", "cause_of"]

Cause = Literal["preemption", "crash", "oom", "hang", "network"]
"""Of a recovery: the node was taken away, the process died, memory ran out, a rank stood still, contact broke."""

APART = "it lives, but it and others could not reach each other"
"""How the loss of a worker is told that was given up since ranks did not meet."""
_GUESSES = re.compile(r"Some common causes include|There are some potential root causes")
_OOM = re.compile(
    r"OutOfMemoryError|OOM[- ]?kill|(killed|died|failed) (due to|because of|by) (the )?(OOM|memory)|low on memory"
    r"|out of memory|exit(ed)?( with)?( an)?( exit)? (code|status)[ :=]*137\b",
    re.IGNORECASE,
)
_PREEMPTED = re.compile(r"preempt", re.IGNORECASE)


def cause_of(text: str, *, draining: bool, hung: bool) -> Cause:
    """Name the cause of a loss.

    Args:
        text: how the loss was seen: the type of Ray's error, and what it says. What it only guesses is left out: for
            every process that is gone Ray names lack of memory as one cause of several.
        draining: whether the cluster had announced that the node would be taken away.
        hung: whether the process was ended because it stood still.

    Returns:
        The cause; "network" only for a worker that was given up since ranks did not meet.

    Example:
        >>> cause_of("OutOfMemoryError: the node was running low on memory", draining=True, hung=False)
        'oom'
        >>> cause_of("ActorDiedError: the worker process died", draining=False, hung=False)
        'crash'
    """
    told = _GUESSES.split(text, maxsplit=1)[0]
    if hung:
        return "hang"
    if told == APART:
        return "network"
    if _OOM.search(told):
        return "oom"
    return "preemption" if draining or _PREEMPTED.search(told) else "crash"
