"""Who of the lost was killed for lack of memory: the kernel says no word to anybody, but it counts such deaths.

Everybody on a machine can read its count; so others there know what became of a worker, and so does the driver for its
own machine. Held by the loop.
"""

from __future__ import annotations

import socket
import time

from orchestrator.verdict import Facts
from workers.memory import kernel_kills
from workers.messages import Pulse, Stopped

__all__ = ["KILLED", "Killed"]

KILLED = "the kernel of its machine has just killed a process for lack of memory (OOM kill)"
RECENTLY = 10.0  # seconds from such a death to the moment at which a worker is known to be lost, at most


class Killed:
    """What is known of such deaths.

    Args:
        facts: of the run; who is lost, and lived where there has just been one, is marked there.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._counts: dict[str, int] = {}  # machine → how many there were since it was started
        self._rose: dict[str, float] = {}  # machine → when one more was told
        self._here = socket.gethostname()
        self._take_in(self._here, kernel_kills())

    def hear(self, message: Pulse | Stopped) -> None:
        """A worker tells the count of its machine."""
        if (place := self._facts.places.get(message.worker)) is not None:
            self._take_in(place.host, message.kills)

    def mark(self) -> None:
        """Note who of the lost has probably been killed for lack of memory."""
        facts = self._facts
        self._take_in(self._here, kernel_kills())
        since = time.monotonic() - RECENTLY
        for worker, text in facts.lost.items():
            place = facts.places.get(worker)
            recent = place is not None and self._rose.get(place.host, float("-inf")) > since
            if recent and worker not in facts.hung and KILLED not in text:
                facts.lost[worker] = f"{text}; {KILLED}"

    def _take_in(self, host: str, count: int) -> None:
        if count > self._counts.setdefault(host, count):
            self._counts[host], self._rose[host] = count, time.monotonic()
