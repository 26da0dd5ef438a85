"""A rank's two boxes: orders that come in, messages that go out. Threads meet here and nowhere else.

`Mailbox` hands out numbered orders in their order, whatever thread delivered them. `Outbox` stamps and keeps messages
until the stream takes them; what only observes is bounded, what steers is never dropped.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Callable

from workers.messages import Message, Observed
from workers.orders import Order

__all__ = ["Mailbox", "Outbox"]

MAX_OBSERVED = 4096  # observations kept for a slow driver; the oldest goes first


class Mailbox:
    """Orders for the training thread.

    Args:
        idle: called instead of waiting when the box is empty. A driver that lives in the same thread works there.
    """

    def __init__(self, idle: Callable[[], None] | None = None) -> None:
        self.idle = idle
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, Order]] = []  # heap by number
        self._next = 0
        self._interrupted: type[BaseException] | None = None

    def interrupt(self, error: type[BaseException] | None) -> None:
        """Have whoever waits here now, or from now on, raise this exception; None: nobody any more. Any thread."""
        with self._changed:
            self._interrupted = error
            self._changed.notify_all()

    def put(self, number: int, order: Order) -> None:
        """Deliver order `number`; numbers count from 0 without a gap, and may be delivered in any sequence."""
        with self._changed:
            if number >= self._next and all(number != known for known, _ in self._waiting):
                heapq.heappush(self._waiting, (number, order))
                self._changed.notify_all()

    def take(self) -> Order | None:
        """The next order if it is here."""
        with self._changed:
            return self._pop()

    def get(self) -> Order:
        """The next order, waiting for it.

        Raises:
            BaseException: what `interrupt` was given.
        """
        if self.idle is not None:
            while (order := self.take()) is None:
                self.idle()
            return order
        with self._changed:
            while True:
                if self._interrupted is not None:
                    raise self._interrupted
                if (order := self._pop()) is not None:
                    return order
                self._changed.wait()

    def _pop(self) -> Order | None:
        if not self._waiting or self._waiting[0][0] != self._next:
            return None
        self._next += 1
        return heapq.heappop(self._waiting)[1]


class Outbox:
    """Messages for the driver, in the order in which they were put."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._messages: deque[Message] = deque()
        self._observed = 0
        self._closed = False
        self.drops = 0

    def put(self, message: Message) -> None:
        """Keep a message until the stream takes it; observations beyond the bound push out the oldest one."""
        with self._changed:
            if isinstance(message, Observed):
                self._observed += 1
                if self._observed > MAX_OBSERVED:
                    self._drop_oldest_observation()
            self._messages.append(message)
            self._changed.notify_all()

    def take(self, timeout: float) -> list[Message]:
        """All messages that are here, after waiting at most `timeout` seconds for the first."""
        with self._changed:
            if not self._messages and not self._closed and timeout > 0:
                self._changed.wait(timeout)
            taken = list(self._messages)
            self._messages.clear()
            self._observed = 0
            return taken

    def close(self) -> None:
        """No message will follow; `take` no longer waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """True when the last message has been taken and none will follow."""
        with self._changed:
            return self._closed and not self._messages

    def _drop_oldest_observation(self) -> None:
        index = next(i for i, message in enumerate(self._messages) if isinstance(message, Observed))
        del self._messages[index]
        self._observed -= 1
        self.drops += 1
