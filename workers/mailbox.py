"""A rank's two boxes: orders that come in, messages that go out. Threads meet here and nowhere else.

`Mailbox` hands out numbered orders in their order, whatever thread delivered them. `Outbox` numbers messages and keeps
them until they have arrived; what only observes is bounded, what steers is never dropped.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Callable

from workers.messages import Message, Observed
from workers.orders import Order

__all__ = ["Mailbox", "Numbered", "Outbox"]

Numbered = tuple[int, Message]
"""A message with its place among all that one worker ever sends; 0 for one that is not sent again, a pulse."""
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
    """Messages for the driver, in the order in which they were put, numbered from 1.

    Whoever can't lose one on the way uses `take`. A stream that may break uses `after`: what it was given stays here
    until it is acknowledged, so that the stream that follows can send it again.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._messages: deque[Numbered] = deque()
        self._numbers = 0  # of the newest message
        self._given = 0  # the newest one that a stream was given
        self._observed = 0  # observations that are here
        self._closed = False
        self.drops = 0

    def put(self, message: Message) -> None:
        """Keep a message until it is taken; observations beyond the bound push out the oldest one."""
        with self._changed:
            if isinstance(message, Observed):
                self._observed += 1
                if self._observed > MAX_OBSERVED:
                    self._drop_oldest_observation()
            self._numbers += 1
            self._messages.append((self._numbers, message))
            self._changed.notify_all()

    def take(self, timeout: float) -> list[Message]:
        """All messages that are here, after waiting at most `timeout` seconds for the first; they are forgotten."""
        taken = self.after(0, timeout)
        if taken:
            self.acknowledge(taken[-1][0])
        return [message for _, message in taken]

    def after(self, number: int, timeout: float) -> list[Numbered]:
        """All messages numbered above `number`, after waiting at most `timeout` seconds for one; they are kept."""
        with self._changed:
            here = bool(self._messages) and self._messages[-1][0] > number
            if not here and not self._closed and timeout > 0:
                self._changed.wait(timeout)
            self._given = max(self._given, self._numbers)
            return [numbered for numbered in self._messages if numbered[0] > number]

    def acknowledge(self, number: int) -> None:
        """Forget the messages up to `number`: they have arrived."""
        with self._changed:
            while self._messages and self._messages[0][0] <= number:
                self._observed -= isinstance(self._messages.popleft()[1], Observed)

    def wake(self) -> None:
        """End whatever waits for a message."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """No message will follow; nobody waits any longer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """True when the last message has been taken and none will follow."""
        with self._changed:
            return self._closed and not self._messages

    def ends_at(self, number: int) -> bool:
        """Whether the message of this number is the last one that there will ever be."""
        with self._changed:
            return self._closed and self._numbers <= number

    def _drop_oldest_observation(self) -> None:
        index, number = next(
            (i, number) for i, (number, message) in enumerate(self._messages) if isinstance(message, Observed)
        )
        del self._messages[index]
        self._observed -= 1
        self.drops += number > self._given  # what a stream was given has most probably arrived
