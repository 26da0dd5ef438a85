"""A worker that starts while others train gives way to them: it runs where a core would idle, for a while.

Importing and building cost seconds of a core, which ranks on the same machine would miss. Only Linux can do that, and
only a process that may take its priority back; any other starts as always. Made by `actor.py`; knows neither Ray nor
torch.
"""

from __future__ import annotations

import contextlib
import os
import threading

from workers.family import family

__all__ = ["GivingWay"]

MOST = 10.0  # seconds; on a machine without an idle moment a start must end as well


class GivingWay:
    """This process at the lowest priority, until `end`; threads and children that are made meanwhile are too.

    Threads that are there already keep theirs: signs of life go on.

    Args:
        seconds: after which it ends by itself.

    Example:
        >>> giving = GivingWay()
        >>> giving.begin()
        >>> giving.end()
    """

    def __init__(self, seconds: float = MOST) -> None:
        self._timer = threading.Timer(seconds, self.end)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._active = False

    def begin(self) -> None:
        """From now on; nothing happens where there is no way back."""
        self._active = _returns()
        if self._active:
            self._timer.start()  # first: it must not give way itself
            self.join()

    def join(self) -> None:
        """The calling thread gives way too, and what it starts."""
        with self._lock:
            if self._active:
                _set(0, os.SCHED_IDLE)

    def end(self) -> None:
        """Back to normal; may be called from any thread, and again."""
        with self._lock:
            if not self._active:
                return
            self._active = False
            self._timer.cancel()
            while idle := [thread for process in family(os.getpid()) for thread in _idle_threads(process)]:
                for thread in idle:
                    _set(thread, os.SCHED_OTHER)


def _returns() -> bool:
    """Whether a thread that gave way would get its priority back; tried by one that ends then."""
    if not hasattr(os, "SCHED_IDLE") or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    found: list[bool] = []

    def try_it() -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            found.append(True)
        except OSError:
            pass

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    return bool(found)


def _set(thread: int, policy: int) -> None:
    """Give a thread a policy; 0: the calling one. One that has ended needs none."""
    with contextlib.suppress(ProcessLookupError):
        os.sched_setscheduler(thread, policy, os.sched_param(0))


def _idle_threads(process: int) -> list[int]:
    found = []
    for thread in _threads(process):
        try:
            if os.sched_getscheduler(thread) == os.SCHED_IDLE:
                found.append(thread)
        except ProcessLookupError:
            continue
    return found


def _threads(process: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{process}/task")]
    except OSError:
        return []
