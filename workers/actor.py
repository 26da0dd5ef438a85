"""Ray's face of a session: one stream of messages up, orders down, and the training thread's long call.

The only file of this package that imports `ray`. Threaded, never restarted by Ray: who is replaced by whom is decided
by the driver alone.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping

import ray

from workers.mailbox import Mailbox, Outbox
from workers.messages import Message
from workers.orders import Order
from workers.rank import Place

__all__ = ["RankActor"]

BEAT = 0.5  # seconds between signs of life


@ray.remote(  # type: ignore[call-overload]  # its stubs do not know concurrency groups
    num_cpus=1,
    max_restarts=0,
    max_task_retries=0,
    concurrency_groups={"run": 1, "events": 2, "control": 2},
)
class RankActor:
    """The process that hosts one rank.

    Args:
        worker_id: id of this worker in the run.
        roots: folders for the front of `sys.path`.
        environment: variables set before anything of the user's is imported.
    """

    def __init__(self, worker_id: int, roots: tuple[str, ...], environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
        sys.path[:0] = [root for root in roots if root not in sys.path]
        from workers.session import Session  # brings torch with it, which the driver that imports this file can spare

        context = ray.get_runtime_context()
        accelerators = context.get_accelerator_ids()
        place = Place(
            node=context.get_node_id(),
            host=socket.gethostname(),
            address=str(ray.util.get_node_ip_address()),  # type: ignore[no-untyped-call]
            pid=os.getpid(),
            gpus=tuple(str(gpu) for gpus in accelerators.values() for gpu in gpus),
        )
        self._session = Session(worker_id=worker_id, place=place, outbox=Outbox(), mailbox=Mailbox())
        self._streaming = threading.Lock()

    @ray.method(concurrency_group="run")
    def run(self) -> None:
        """The training thread; returns when the rank has left."""
        self._session.run()

    @ray.method(concurrency_group="events", num_returns="streaming")
    def events(self) -> Iterator[list[Message]]:
        """Batches of messages as they come; at least one, with a pulse, every half second."""
        with self._streaming:
            last = 0.0
            while not self._session.outbox.closed:
                batch = self._session.outbox.take(timeout=BEAT)
                if (now := time.monotonic()) - last >= BEAT:
                    batch.append(self._session.pulse())
                    last = now
                if batch:
                    yield batch

    @ray.method(concurrency_group="control")
    def control(self, number: int, order: Order) -> None:
        """Take order `number` (they count from 0); what can't wait is done at once."""
        if not self._session.control(order):
            self._session.mailbox.put(number, order)
