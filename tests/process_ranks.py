"""Workers as plain processes of this machine: whole runs with real ranks, real deaths and real gloo, without Ray.

`ProcessGroup` stands in for `orchestrator.group.RayGroup` and takes the same arguments:

    monkeypatch.setattr("orchestrator.training.RayGroup", ProcessGroup)

The processes come from multiprocessing's fork server, which has torch imported, so one is up in a tenth of a second.
What a cluster has and one machine does not is pretended by class attributes that a test may set: several nodes, how
many workers fit, nodes that are draining.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any, ClassVar

from orchestrator.exchange import Inbox, Incoming, Interrupt, Lost
from orchestrator.spec import ClusterSpec, WorkersSpec
from tests.processes import PRELOAD
from workers.orders import Leave, Order, acts_at_once
from workers.stacks import stacks_of

__all__ = ["ProcessGroup"]

BEAT = 0.5  # seconds between a rank's signs of life


class ProcessGroup:
    """Workers that are processes of this machine.

    Args:
        workers: how many.
        cluster: unused, as `roots`' and `environment`'s readers are this machine's own.
        roots: folders that go to the front of the ranks' `sys.path`.
        environment: variables for the ranks.
        lease: seconds without a word of the driver after which a worker ends itself.

    Attributes:
        lines: worker → its process and what carries its words; lost workers are in it, killed ones are not.
        ordered: what each worker was ordered, in order.
        made: all groups of this class that were started, the newest last; a test empties it.
    """

    needs_store = True
    nodes: ClassVar[tuple[str, ...]] = ("node-a",)
    """Ids of the nodes that are pretended; worker n of the start lives on node n modulo their number."""
    places: ClassVar[int | None] = None
    """How many workers fit; others wait until one is killed, or for ever."""
    drains: ClassVar[Mapping[str, float]] = {}
    """What `draining` tells."""
    made: ClassVar[list[ProcessGroup]] = []

    def __init__(
        self,
        workers: WorkersSpec,
        cluster: ClusterSpec,
        *,
        roots: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        lease: float = 60.0,
        logs: object = None,  # what these ranks print goes where the test's own words go
    ) -> None:
        self.size = workers.count + workers.spares
        self.lines: dict[int, Line] = {}
        self.ordered: dict[int, list[Order]] = {}
        self._given = (roots, dict(environment or {}), lease)
        self._inbox = Inbox()
        self._waiting: dict[int, str] = {}  # workers without a place: id → node

    # ---------------------------------------------------------------- what the driver calls
    def start(self) -> None:
        """Start all; each says `Hello`."""
        type(self).made.append(self)
        for worker in range(self.size):
            self._place(worker, self.nodes[worker % len(self.nodes)])

    def address(self) -> str:
        """This machine."""
        return "127.0.0.1"

    def shortage(self) -> str | None:
        """Who waits for a place."""
        return "0 CPU" if self._waiting else None

    def order(self, worker: int, order: Order) -> None:
        """Send an order; one for a process that is gone goes nowhere."""
        self.ordered.setdefault(worker, []).append(order)
        if worker not in self._waiting:
            self.lines[worker].order(order)

    def add(self, worker: int, *, avoid: Collection[str] = (), gives_way: bool = False) -> None:
        """Start one more; without a node that is allowed, or without room, it waits."""
        assert worker not in self.ordered, f"worker {worker} has been there before"
        self.size += 1
        allowed = [node for node in self.nodes if node not in avoid]
        if allowed:
            self._place(worker, allowed[worker % len(allowed)])
        else:
            self.ordered[worker] = []
            self._waiting[worker] = ""

    def kill(self, worker: int) -> None:
        """End a process, also a stopped one, and let who waits have its place."""
        self._inbox.close(worker)
        self.size -= 1
        if self._waiting.pop(worker, None) is None:
            self.lines.pop(worker).kill()
        self._let_in()

    def stacks(self, workers: Collection[int]) -> dict[int, str]:
        """As anybody on this machine can see them."""
        return {worker: stacks_of(self.lines[worker].pid) for worker in workers}

    def draining(self) -> Mapping[str, float]:
        """What the test says."""
        return self.drains

    def take(self, timeout: float) -> Incoming | None:
        """The next thing that came from any worker."""
        return self._inbox.take(timeout)

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        self._inbox.put(Interrupt())

    def tell(self, came: Incoming) -> None:
        """As another thread of the driver does."""
        self._inbox.put(came)

    def stop(self, *, grace: float) -> list[str]:
        """Let them leave, then end them."""
        if grace > 0:
            for line in self.lines.values():
                line.order(Leave())
            until = time.monotonic() + grace
            for line in self.lines.values():
                line.ended.wait(max(until - time.monotonic(), 0.0))
        for line in self.lines.values():
            line.kill()
        self.lines.clear()
        self._waiting.clear()
        return []

    # ---------------------------------------------------------------- what tests need
    @property
    def pids(self) -> dict[int, int]:
        """Process ids by worker."""
        return {worker: line.pid for worker, line in self.lines.items()}

    def signal(self, worker: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a worker's process."""
        os.kill(self.lines[worker].pid, number)

    def _place(self, worker: int, node: str) -> None:
        self.ordered.setdefault(worker, [])
        self._waiting[worker] = node
        self._let_in()

    def _let_in(self) -> None:
        """Start who waits, as far as there is room."""
        for worker, node in list(self._waiting.items()):
            alive = sum(1 for line in self.lines.values() if not line.ended.is_set())
            if node and (self.places is None or alive < self.places):
                del self._waiting[worker]
                self.lines[worker] = Line(worker, node, self._inbox, self._given)
                for order in self.ordered[worker]:
                    self.lines[worker].order(order)


class Line:
    """One worker's process, and the two threads that carry words to and from it."""

    def __init__(
        self, worker: int, node: str, inbox: Inbox, given: tuple[tuple[str, ...], dict[str, str], float]
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self.worker = worker
        self.ended = threading.Event()
        self._inbox = inbox
        self._beat = given[2] / 4
        self._numbers = itertools.count()
        self._leaving = False
        self._orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._words, theirs = context.Pipe()
        self._process = context.Process(target=_live, args=(worker, node, *given, theirs))
        self._process.start()
        theirs.close()
        self.pid: int = self._process.pid
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._send, self._hear)]
        for thread in self._threads:
            thread.start()

    def order(self, order: Order) -> None:
        """Hand an order to the thread that sends: a stopped process takes nothing."""
        self._leaving |= isinstance(order, Leave)
        self._orders.put((-1 if acts_at_once(order) else next(self._numbers), order))

    def kill(self) -> None:
        """End the process and the threads."""
        self._process.kill()
        self._orders.put(None)
        for thread in self._threads:
            thread.join()
        self._words.close()
        self._process.close()

    def _send(self) -> None:
        """Send orders, and in between signs of life."""
        with contextlib.suppress(OSError):  # gone: who hears of it tells
            while (numbered := self._next()) is not None:
                self._words.send(numbered)

    def _next(self) -> Any:
        try:
            return self._orders.get(timeout=self._beat)
        except queue.Empty:
            return (-1, None)

    def _hear(self) -> None:
        """Take in what the process says until it is gone; a process that was killed in mid-word said nothing."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                wait([self._words, self._process.sentinel])
                if not self._words.poll(0):  # all was heard, and the process is gone
                    break
                for message in self._words.recv():
                    self._inbox.put(message)
        self._process.join()
        self.ended.set()
        if not self._leaving or self._process.exitcode:
            self._inbox.put(Lost(worker=self.worker, cause=f"its process is gone (exit code {self._process.exitcode})"))


# ---------------------------------------------------------------- in the worker's process
def _live(
    worker: int, node: str, roots: tuple[str, ...], environment: dict[str, str], lease: float, words: Connection
) -> None:
    """What a worker's process does, from its start to its end: as `workers.actor` on Ray."""
    os.environ.update(environment)
    sys.path[:0] = [root for root in roots if root not in sys.path]
    from workers import failpoints
    from workers.mailbox import Mailbox, Outbox
    from workers.rank import Place
    from workers.session import Session
    from workers.stacks import offer
    from workers.watchdog import Watchdog

    failpoints.arm(environment.get(failpoints.VARIABLE, ""))  # the fork server has imported it long ago
    offer()
    watchdog = Watchdog(lease)
    watchdog.start()
    place = Place(node=node, host=socket.gethostname(), address="127.0.0.1", pid=os.getpid())
    session = Session(worker_id=worker, place=place, outbox=Outbox(), mailbox=Mailbox())
    threading.Thread(target=_take_orders, args=(session, watchdog, words), name="control", daemon=True).start()
    training = threading.Thread(target=session.run, name="run", daemon=True)
    training.start()
    with contextlib.suppress(OSError):
        for batch in _stream(session):
            watchdog.check()
            words.send(batch)


def _stream(session: Any) -> Iterator[list[Any]]:
    last = 0.0
    while not session.outbox.closed:
        batch = session.outbox.take(timeout=BEAT)
        if (now := time.monotonic()) - last >= BEAT:
            batch.append(session.pulse())
            last = now
        if batch:
            yield batch


def _take_orders(session: Any, watchdog: Any, words: Connection) -> None:
    """Take orders until the driver is gone, which ends this process."""
    try:
        while True:
            number, order = words.recv()
            watchdog.hear()
            if order is not None and not session.control(order):
                session.mailbox.put(number, order)
    except (EOFError, OSError):
        os._exit(1)
