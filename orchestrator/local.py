"""`workers: 0`: one session in the calling process and thread, so that a debugger sees user code as it is.

Driver and rank take turns on one stack. Where a rank on a cluster would wait for an order, and between two iterations,
the driver's loop is called; where the driver would wait for a message, the session is given its next order.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping

from orchestrator.exchange import Incoming, Interrupt
from workers.errors import LeaveNow
from workers.mailbox import Mailbox, Outbox
from workers.messages import Hello, Message
from workers.orders import Go, Leave, Order
from workers.rank import Place
from workers.session import Session

__all__ = ["LocalGroup"]

TICK = 0.25  # seconds between two looks at the clock


class LocalGroup:
    """One worker in this process.

    Args:
        turn: the driver's turn: handle what has come; called when the session waits for an order.
        tick: the driver's look at its clock; called between iterations, a few times a second.
    """

    needs_store = False

    def __init__(self, turn: Callable[[], None], tick: Callable[[], None] = lambda: None) -> None:
        self.size = 1
        self._turn = turn
        self._tick = tick
        self._ticked = time.monotonic()
        self._mailbox = Mailbox(idle=lambda: self._give_turn(self._turn))
        self._outbox = Outbox()
        self._number = 0
        self._inbox: deque[Incoming] = deque()
        self._raised: BaseException | None = None
        place = Place(node="local", host=socket.gethostname(), address="127.0.0.1", pid=os.getpid(), gpus=None)
        self.session = Session(worker_id=0, place=place, outbox=self._outbox, mailbox=self._mailbox)

    def start(self) -> None:
        """The session says hello; nothing needs to be started."""
        self.session.send(Hello, place=self.session.place)

    def address(self) -> str:
        """This machine, for this machine."""
        return "127.0.0.1"

    def shortage(self) -> str | None:
        """There is always room for nobody."""
        return None

    def order(self, worker: int, order: Order) -> None:
        """Act at once on what can't wait; keep the rest until the session takes its turn."""
        assert worker == 0, f"there is no worker {worker} in this process"
        if isinstance(order, Go):
            self.session.trainer.set_boundary(self._between_iterations)
        if not self.session.control(order):
            self._mailbox.put(self._number, order)
            self._number += 1

    def add(self, worker: int, *, avoid: Collection[str] = (), gives_way: bool = False) -> None:
        """There is one process, and it can't be had twice."""
        raise AssertionError(f"worker {worker} can't be added: the only one lives in this process")

    def kill(self, worker: int) -> None:
        """The only worker is the driver itself."""
        raise AssertionError(f"worker {worker} can't be killed: it lives in this process")

    def stacks(self, workers: Collection[int]) -> dict[int, str]:
        """Nobody else looks at this process."""
        return dict.fromkeys(workers, "it lives in the driver's own process")

    def draining(self) -> Mapping[str, float]:
        """Nobody takes this machine away."""
        return {}

    def take(self, timeout: float) -> Incoming | None:
        """What came; if nothing did, the session carries out its next order, which brings something."""
        self._collect()
        if not self._inbox and (order := self._mailbox.take()) is not None:
            self._serve(order)
            self._collect()
        if not self._inbox and timeout > 0:  # only a thread of the session can bring anything now: one that writes
            self._inbox.extend(self._outbox.take(timeout=timeout))
        return self._inbox.popleft() if self._inbox else None

    def interrupt(self) -> None:
        """Leave an `Interrupt` for the driver's next turn, which comes between two iterations at the latest."""
        self._inbox.append(Interrupt())

    def tell(self, came: Incoming) -> None:
        """Leave something for the driver's next turn."""
        self._inbox.append(came)

    def stop(self, *, grace: float) -> list[str]:
        """Have the session let go of everything."""
        with contextlib.suppress(LeaveNow):
            self.session.serve(Leave())
        return []

    def _between_iterations(self, _: object) -> None:
        """Let the driver see to everything that has come."""
        if (now := time.monotonic()) - self._ticked > TICK:
            self._ticked = now
            self._give_turn(self._tick)
        self._collect()
        while self._inbox:
            self._give_turn(self._turn)
            self._collect()

    def _give_turn(self, turn: Callable[[], None]) -> None:
        """Let the driver work; what it raises must unwind the session below it without being taken for the user's."""
        try:
            turn()
        except BaseException as error:
            self._raised = error
            raise LeaveNow from error

    def _serve(self, order: Order) -> None:
        try:
            self.session.serve(order)
        except LeaveNow:
            if self._raised is None:
                raise
            raised, self._raised = self._raised, None
            raise raised from raised.__cause__

    def _collect(self) -> None:
        messages: list[Message] = self._outbox.take(timeout=0)
        self._inbox.extend(messages)
