"""A rank that nobody needs any more ends by itself: when its driver has been silent for a lease's time, or when the
process that started it is gone.

Its driver may have given it up long ago and replaced it: it was stopped, its machine slept, its network was cut. So
whoever speaks for it asks first (`check`), and a word of the driver that had waited in the wire all that time does not
renew a lease that is over (`hear`). Made by `actor.py`; it knows neither Ray nor torch.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

__all__ = ["EXIT_CODE", "Watchdog", "reason_to_end"]

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits(3): nothing is wrong here that another attempt would meet again
LOOK = 1.0  # seconds between two looks


def reason_to_end(*, silent: float, lease: float, parent: int, parent_then: int) -> str | None:
    """Why this process shall end; None while it shall live.

    Args:
        silent: seconds since the driver's last word.
        lease: seconds of silence that are allowed.
        parent: id of the process that is its parent now.
        parent_then: of the one that started it.

    Example:
        >>> reason_to_end(silent=61.0, lease=60.0, parent=7, parent_then=7)
        'its driver has been silent for 61 s, the lease is 60 s'
        >>> reason_to_end(silent=1.0, lease=60.0, parent=1, parent_then=7)
        'the process that started it (pid 7) is gone'
        >>> reason_to_end(silent=1.0, lease=60.0, parent=7, parent_then=7)
    """
    if parent != parent_then:
        return f"the process that started it (pid {parent_then}) is gone"
    if silent > lease:
        return f"its driver has been silent for {silent:.0f} s, the lease is {lease:g} s"
    return None


def now() -> float:
    """Seconds on a clock that runs on while the machine sleeps, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def end(reason: str) -> None:
    """End this process at once, whatever its threads hold."""
    os.write(2, f"rankfire: this rank ends: {reason}\n".encode())
    os._exit(EXIT_CODE)


class Watchdog:
    """Watches over this process.

    Args:
        lease: seconds that the driver may be silent.
        clock: tells the time in seconds.
        end: ends the process.
    """

    def __init__(self, lease: float, *, clock: Callable[[], float] = now, end: Callable[[str], None] = end) -> None:
        self._lease = lease
        self._clock = clock
        self._end = end
        self._parent = os.getppid()
        self._heard = clock()

    def start(self) -> None:
        """Look from time to time, in a thread of its own."""
        threading.Thread(target=self._watch, name="rankfire-watchdog", daemon=True).start()

    def check(self) -> None:
        """End the process if it shall not live; before it says or writes anything that others see."""
        silent = self._clock() - self._heard
        reason = reason_to_end(silent=silent, lease=self._lease, parent=os.getppid(), parent_then=self._parent)
        if reason is not None:
            self._end(reason)

    def hear(self) -> None:
        """The driver said something; too late if the lease is over."""
        self.check()
        self._heard = self._clock()

    def _watch(self) -> None:
        while True:
            time.sleep(min(LOOK, self._lease / 4))
            self.check()
