"""One thread that does what may wait for somebody else, one thing after the other; nobody has to wait for it.

`group.py` has its places reserved and given back by one: the cluster may take its time for that, or never answer.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

__all__ = ["Clerk"]

LOOK = 0.05  # seconds between two looks whether it is still worth waiting

_logger = logging.getLogger(__name__)


class Clerk:
    """Does things in the order of asking, from `start` to `stop`.

    A thread pool would be joined when the interpreter ends, whatever its thread hangs in.

    Args:
        name: of the thread.

    Example:
        >>> clerk, done = Clerk("doctest"), []
        >>> clerk.start()
        >>> clerk.submit(lambda: done.append(1))
        >>> clerk.wait(give_up=lambda: False), done
        (True, [1])
        >>> clerk.stop()
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._waiting: deque[Callable[[], None]] = deque()
        self._busy = False
        self._stopped = False

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def submit(self, act: Callable[[], None]) -> None:
        """Have something done; returns at once. Whatever it raises is logged."""
        with self._changed:
            self._waiting.append(act)
            self._changed.notify_all()

    def drop(self) -> None:
        """What has not been begun is not done any more."""
        with self._changed:
            self._waiting.clear()

    def wait(self, *, give_up: Callable[[], bool]) -> bool:
        """Wait until all is done.

        Args:
            give_up: asked from time to time whether that is in vain.

        Returns:
            Whether it is done; False if it was given up.
        """
        with self._changed:
            while self._busy or self._waiting:
                if give_up():
                    return False
                self._changed.wait(LOOK)
        return True

    def stop(self) -> None:
        """Let the thread end when it has done what it is at; does not wait for that."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopped:
                    self._changed.wait()
                if not self._waiting:
                    return
                act, self._busy = self._waiting.popleft(), True
            try:
                act()
            except Exception as error:  # of others, who shall get their turn
                _logger.error("%s: what was asked for failed", self._name, exc_info=error)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()
