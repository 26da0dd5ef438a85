"""Ray's face of a session: one stream of messages up, orders down, and the training thread's long call.

The only file of this package that imports `ray`. Threaded, never restarted by Ray: who is replaced by whom is decided
by the driver alone. A stream that broke can be followed by another one; a driver that is silent ends this process.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping

import ray

from workers.giving_way import GivingWay
from workers.logs import LineLog, LogPlace, Tee
from workers.mailbox import Mailbox, Numbered, Outbox
from workers.orders import Build, Join, Order
from workers.rank import Place
from workers.stacks import offer, stacks_of_all
from workers.watchdog import Watchdog

__all__ = ["RankActor"]

BEAT = 0.5  # seconds between signs of life


@ray.remote(  # type: ignore[call-overload]  # its stubs do not know concurrency groups
    num_cpus=1,
    max_restarts=0,
    max_task_retries=0,
    concurrency_groups={"run": 1, "events": 2, "control": 2, "beats": 1, "looks": 1},
)
class RankActor:
    """The process that hosts one rank.

    Args:
        worker_id: id of this worker in the run.
        roots: folders for the front of `sys.path`.
        environment: variables set before anything of the user's is imported.
        lease: seconds without a word of the driver after which this process ends itself.
        gives_way: whether it starts while others train, who need the machine more.
        logs: where the lines go that this process prints; None: nowhere but where Ray puts them.
    """

    def __init__(
        self,
        worker_id: int,
        roots: tuple[str, ...],
        environment: Mapping[str, str],
        lease: float,
        gives_way: bool = False,
        logs: LogPlace | None = None,
    ) -> None:
        offer()
        self._giving_way = GivingWay()
        if gives_way:
            self._giving_way.begin()
        os.environ.update(environment)
        self._log = None if logs is None else LineLog(logs)
        if self._log is not None:
            sys.stdout, sys.stderr = Tee(sys.stdout, "out", self._log), Tee(sys.stderr, "err", self._log)
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
        self._epoch = 0
        self._watchdog = Watchdog(lease)  # only now: no beat comes through before this process is made
        self._watchdog.start()

    @ray.method(concurrency_group="run")
    def run(self) -> None:
        """The training thread; returns when the rank has left."""
        threading.current_thread().name = "rankfire-training"  # as it is called in stacks
        self._giving_way.join()
        try:
            self._session.run()
        finally:
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, Tee):
                    stream.finish()

    @ray.method(concurrency_group="events", num_returns="streaming")
    def events(self, epoch: int, heard: int) -> Iterator[list[Numbered]]:
        """Batches of messages as they come; at least one, with a pulse, every half second.

        A stream ends when the next epoch's begins: two can't both be read, but one may be stuck in a broken connection.

        Args:
            epoch: number of this stream.
            heard: number of the last message that has arrived; what follows it comes, again if need be.
        """
        outbox, last = self._session.outbox, 0.0
        self._epoch = max(self._epoch, epoch)
        outbox.acknowledge(heard)
        outbox.wake()
        while epoch == self._epoch and not outbox.ends_at(heard):
            batch = outbox.after(heard, timeout=BEAT)
            heard = batch[-1][0] if batch else heard
            if (now := time.monotonic()) - last >= BEAT:
                batch.append((0, self._session.pulse()))
                last = now
            self._watchdog.check()
            if batch and epoch == self._epoch:
                yield batch

    @ray.method(concurrency_group="control")
    def control(self, number: int, order: Order) -> None:
        """Take order `number` (they count from 0); what can't wait is done at once."""
        self._watchdog.hear()
        if isinstance(order, Join):
            self._giving_way.end()
        if self._log is not None and isinstance(order, Build | Join):
            member = order.membership
            kind = "rank" if member.rank < member.world_size else "spare"
            self._log.belong_to(f"{kind}-{member.rank:04d}", f"{kind} {member.rank}")
        if not self._session.control(order):
            self._session.mailbox.put(number, order)

    @ray.method(concurrency_group="beats")
    def beat(self, heard: int) -> None:
        """The driver lives, and has heard the messages up to this number."""
        self._watchdog.hear()
        self._session.outbox.acknowledge(heard)

    @ray.method(concurrency_group="looks")
    def stacks(self, pids: list[int]) -> dict[int, str]:
        """Stacks of processes on this node: a neighbour that hangs can't tell its own."""
        return stacks_of_all(pids)
