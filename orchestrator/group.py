"""The ranks as one thing on Ray: start the actors, send orders, gather their streams into one queue, end them.

One background thread drains all streams; the driver's loop takes from the queue on the thread of the user. The first
error of a stream, of whatever kind, means that its worker is lost now.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.exchange import Inbox, Incoming, Interrupt, Lost
from orchestrator.placement import Cluster, bundle_of
from orchestrator.spec import ClusterSpec, WorkersSpec
from workers.actor import RankActor
from workers.messages import Hello
from workers.orders import CutAt, Leave, Order, ProposeCut
from workers.rank import Place
from workers.stacks import stacks_of

__all__ = ["RayGroup"]

_GUESSES = " Some common causes include"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class RayGroup:
    """Workers that are Ray actors.

    Args:
        workers: how many, and what each needs.
        cluster: where they live.
        roots: folders that go to the front of the ranks' `sys.path`.
        environment: variables for the ranks.
    """

    needs_store = True

    def __init__(
        self,
        workers: WorkersSpec,
        cluster: ClusterSpec,
        *,
        roots: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._workers = workers
        self.size = workers.count + workers.spares
        self._cluster = Cluster(cluster, workers)
        self._roots = roots
        self._environment = dict(environment or {})
        self._inbox = Inbox()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._actors: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        self._places: dict[int, Place] = {}
        self._leaving: set[int] = set()
        self._ended: set[int] = set()
        self._here = ""

    def start(self) -> None:
        """Start the actors against the placement group without waiting for it: they queue for their places."""
        group = self._cluster.start()
        self._here = self._cluster.node()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rankfire-streams", daemon=True)
        self._thread.start()
        for worker in range(self.size):
            self._launch(worker, PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=worker))

    def address(self) -> str:
        """IP address of the driver's node."""
        return self._cluster.address()

    def shortage(self) -> str | None:
        """If the places are not there yet: what is free, in words."""
        return None if self._cluster.ready() else self._cluster.shortage()

    def order(self, worker: int, order: Order) -> None:
        """Send an order; numbered, since a threaded actor may take two at once."""
        if isinstance(order, Leave):
            self._leaving.add(worker)
        number = -1
        if not isinstance(order, ProposeCut | CutAt):
            number = self._numbers[worker]
            self._numbers[worker] += 1
        self._actors[worker].control.remote(number, order)

    def add(self, worker: int, *, avoid: Collection[str] = ()) -> None:
        """Start one more worker in a placement group of its own."""
        assert worker not in self._numbers, f"worker {worker} has been there before"
        group = self._cluster.reserve(worker, avoid)
        self._launch(worker, PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0))
        self.size += 1

    def kill(self, worker: int) -> None:
        """End a worker's process and give back its place."""
        self._inbox.close(worker)
        self._leaving.add(worker)
        self.size -= 1
        with contextlib.suppress(Exception):  # it is dead already
            ray.kill(self._actors.pop(worker), no_restart=True)
        place = self._places.get(worker)
        if place is not None and place.node == self._here:  # Ray would give a stopped process 5 s
            with contextlib.suppress(OSError):
                os.kill(place.pid, signal.SIGKILL)
        self._cluster.release(worker)

    def stacks(self, workers: Collection[int]) -> dict[int, str]:
        """Those on this machine are looked at from here."""
        return {worker: stacks_of(self._places[worker].pid) for worker in workers if worker in self._places}

    def draining(self) -> Mapping[str, float]:
        """Nodes that are about to be taken away."""
        return {}

    def take(self, timeout: float) -> Incoming | None:
        """The next thing that came from any worker."""
        return self._inbox.take(timeout)

    def interrupt(self) -> None:
        """Put an `Interrupt` into the queue."""
        self._inbox.put(Interrupt())

    def tell(self, came: Incoming) -> None:
        """Put something into the queue."""
        self._inbox.put(came)

    def stop(self, *, grace: float) -> list[str]:
        """Let the ranks leave, then end their processes, give back their places, and see that all is gone."""
        if grace > 0:
            for worker in self._actors.keys() - self._ended:
                self.order(worker, Leave())
            self._wait_ended(grace)
        for actor in self._actors.values():
            with contextlib.suppress(Exception):  # a dead actor, or a cluster that is gone: nothing is left to end
                ray.kill(actor, no_restart=True)
        left = self._wait_gone()
        self._stop_streams()
        self._actors.clear()
        self._cluster.stop()
        return left

    def _launch(self, worker: int, placed: PlacementGroupSchedulingStrategy) -> None:
        assert self._loop is not None, "the group is not started"
        bundle = bundle_of(self._workers)
        extra = {name: amount for name, amount in bundle.items() if name not in {"CPU", "GPU"}}
        actor = RankActor.options(  # type: ignore[attr-defined]
            num_cpus=bundle.get("CPU", 0),
            num_gpus=bundle.get("GPU", 0),
            resources=extra,
            scheduling_strategy=placed,
        ).remote(worker, self._roots, self._environment)
        self._actors[worker] = actor
        self._numbers[worker] = 0
        actor.run.remote()
        asyncio.run_coroutine_threadsafe(self._drain(worker, actor.events.remote()), self._loop)

    async def _drain(self, worker: int, stream: Any) -> None:
        """Move one worker's messages into the queue until its stream ends or breaks."""
        try:
            async for batch in stream:
                for message in await batch:
                    if isinstance(message, Hello):
                        self._places[worker] = message.place
                    self._inbox.put(message)
            self._ended.add(worker)
            if worker not in self._leaving:  # nobody told this rank to go, so somebody waits for it
                self._inbox.put(Lost(worker=worker, cause="its stream ended"))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # of any kind: this worker can't be heard any more
            self._ended.add(worker)
            self._inbox.put(Lost(worker=worker, cause=_cause(error)))

    def _wait_ended(self, grace: float) -> None:
        until = time.monotonic() + grace
        while self._actors.keys() - self._ended and time.monotonic() < until:
            time.sleep(0.001)

    def _wait_gone(self) -> list[str]:
        """Wait for the processes on this machine to be gone; those elsewhere are their raylet's to end."""
        until = time.monotonic() + 6.0  # Ray gives a killed worker 5 s
        here = {place.pid: str(place) for place in self._places.values() if place.node == self._here}
        while here and time.monotonic() < until:
            here = {pid: text for pid, text in here.items() if _alive(pid)}
            time.sleep(0.001)
        return list(here.values())

    def _stop_streams(self) -> None:
        """Readers do not end with Ray: cancel them first."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return

        async def cancel() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(cancel(), loop).result(timeout=5.0)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=5.0)
        loop.close()
        self._loop = self._thread = None


def _cause(error: BaseException) -> str:
    """The last line of Ray's error, which tells, without its guesses; before it stand tracebacks and ids."""
    lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].partition(_GUESSES)[0] if lines else ''}".rstrip(": ")


def _alive(pid: int) -> bool:
    """Whether a process runs: one that is only waiting to be reaped does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return os.path.exists(f"/proc/{pid}")
