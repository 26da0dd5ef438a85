"""Why a worker was lost, from the words in which the loss was told. Pure; each cause has a budget of its own.

Used by `recovery.py` to charge a loss, by `verdict.py` to put it on record, and by who tells it.
"""

from __future__ import annotations

import re
from typing import Literal

__all__ = ["APART", "Cause", "cause_of", "in_words"]

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

_OF_RAY = (
    (re.compile(r"^ActorDiedError: .*exits? with an exit code (\d+)\.?"), r"its process ended with exit code \1"),
    (
        re.compile(r"^ActorDiedError: .*connection error code \d+\. End of file\.?"),
        "its process died without a word: it was killed from outside, as by kill -9, or crashed",
    ),
    (re.compile(r"^ActorUnavailableError: .*"), "the connection to it broke, and it did not come back"),
)
"""What Ray says, which is made for those who debug Ray, and the same for everybody."""


def in_words(text: str) -> str:
    """How a loss was seen, for people; what is no phrase of Ray's stays as it is.

    Example:
        >>> in_words("ActorDiedError: The actor is dead. Worker exits with an exit code 7.")
        'its process ended with exit code 7'
    """
    for phrase, words in _OF_RAY:
        text = phrase.sub(words, text, count=1)
    return text


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
