"""How long the cluster's head (GCS) has been silent, and when a run is to be ended for it. Pure.

Without its head a cluster goes on for a while: ranks train and are heard, nothing new starts. Then Ray ends every
process that waits for it, the driver as well, with no error that could be caught: so a run must have ended before.
`nodes.py` asks the head and keeps one of these; `headless.py` ends the run.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["LIMIT", "Contact", "limit_of"]

LIMIT = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""The environment variable in which Ray is told how long its processes wait for the head."""
RAYS_OWN = 60.0  # seconds, if it is not told
LOST, ENDED = 0.4, 0.65  # of the limit: when the head counts as lost, and when a run has saved what it could
AWAY = 4.0  # seconds of silence after which nothing is asked of the head that can't be given up
QUESTIONS = 3  # that must have had no answer: a driver that was suspended has not asked meanwhile


def limit_of(environment: Mapping[str, str]) -> float:
    """Seconds after which Ray ends a process that does not reach the head.

    Example:
        >>> limit_of({}), limit_of({"RAY_gcs_rpc_server_reconnect_timeout_s": "600"})
        (60.0, 600.0)
    """
    try:
        return float(environment.get(LIMIT, RAYS_OWN))
    except ValueError:  # Ray will not have taken it either
        return RAYS_OWN


class Contact:
    """Contact with the head, from the moment at which it was there.

    Args:
        limit: seconds after which Ray ends this process if it does not reach the head.
        now: seconds on a clock that never goes back.

    Attributes:
        patience: seconds of silence after which the head counts as lost.

    Example:
        >>> contact = Contact(60.0, now=0.0)
        >>> [contact.unanswered(now) for now in (10.0, 20.0, 25.0, 30.0)]
        [False, False, True, False]
        >>> contact.silence(30.0), contact.left(30.0)
        (30.0, 9.0)
    """

    def __init__(self, limit: float, now: float) -> None:
        self.patience = LOST * limit
        self._limit = limit
        self._answered = now
        self._unanswered = 0
        self._lost = False

    def answered(self, now: float) -> None:
        """The head answered."""
        self._answered, self._unanswered = now, 0

    def unanswered(self, now: float) -> bool:
        """It did not; whether it counts as lost from this moment on."""
        self._unanswered += 1
        if self._lost or self._unanswered < QUESTIONS or self.silence(now) < self.patience:
            return False
        self._lost = True
        return True

    def silence(self, now: float) -> float:
        """Seconds since its last answer."""
        return now - self._answered

    def left(self, now: float) -> float:
        """Seconds in which a run should have saved what it can; after that it needs some to end."""
        return max(0.0, ENDED * self._limit - self.silence(now))

    def away(self, now: float) -> bool:
        """Whether a question that has to be answered would better not be asked."""
        return self._lost or (self._unanswered > 0 and self.silence(now) > AWAY)
