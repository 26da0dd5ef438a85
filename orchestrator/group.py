"""The ranks as one thing on Ray: start the actors, send orders, add and end single ones, end them all.

The driver's loop calls it on the thread of the user. Three threads stand behind it: one reads the streams
(`streams.py`), one talks to the cluster about places, which may wait for it (`placement.py`), one looks for nodes that
are about to be taken away (`nodes.py`).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, ActorUnschedulableError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.capacity import bundle_of
from orchestrator.clerk import Clerk
from orchestrator.exchange import HeadLost, Inbox, Incoming, Interrupt, Lost
from orchestrator.nodes import Nodes
from orchestrator.placement import Cluster, Places
from orchestrator.spec import ClusterSpec, WorkersSpec
from orchestrator.streams import Line, Streams
from workers.actor import RankActor
from workers.logs import LogPlace
from workers.orders import Leave, Order, acts_at_once
from workers.rank import Place
from workers.stacks import stacks_of_all, state_of

__all__ = ["LEASE", "RayGroup"]

LEASE = 60.0  # seconds without a word of the driver after which a worker ends itself
BEATS = 4  # signs of life in a lease
TRIES = 3  # times that a worker is started which never began to live
GONE = 6.0  # seconds for processes to be gone: Ray gives a killed worker 5 s


@dataclass(slots=True, eq=False)
class Member:
    """One worker: its actor, once it has one; the node of its place, if it is known; where it shall not live."""

    actor: Any = None
    home: str | None = None
    numbers: Iterator[int] = field(default_factory=itertools.count)
    avoid: set[str] = field(default_factory=set)
    gives_way: bool = False  # whether others train while it starts
    tries: int = 1


class RayGroup:
    """Workers that are Ray actors.

    Args:
        workers: how many, and what each needs.
        cluster: where they live.
        roots: folders that go to the front of the ranks' `sys.path`.
        environment: variables for the ranks.
        lease: seconds without a word of the driver after which a worker ends itself.
        logs: where the lines go that the ranks print.
    """

    needs_store = True

    def __init__(
        self,
        workers: WorkersSpec,
        cluster: ClusterSpec,
        *,
        roots: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        lease: float = LEASE,
        logs: LogPlace | None = None,
    ) -> None:
        self._workers = workers
        self.size = workers.count + workers.spares
        self._cluster = Cluster(cluster, workers)
        self._places: Places | None = None
        self._nodes = Nodes(died=self._node_died, lost=self._head_lost)
        self._roots = roots
        self._environment = dict(environment or {})
        self._lease = lease
        self._logs = logs
        self._inbox = Inbox()
        self._streams = Streams(
            self._inbox, beat=lease / BEATS, may_return=(ActorUnavailableError,), home=self._nodes.port
        )
        self._clerk = Clerk("rankfire-places")  # waits for the cluster
        self._members: dict[int, Member] = {}
        self._known: set[int] = set()  # ids of all workers that there ever were
        self._here = ""
        self._stopping = False

    def start(self) -> None:
        """Ask for all places; the actors start as soon as they are there."""
        self._cluster.start()
        self._here = self._cluster.node()
        self._places = Places(self._workers, one_node=self._cluster.one_node)
        self._nodes.start()
        self._streams.start()
        self._clerk.start()
        self._members = {worker: Member() for worker in range(self.size)}
        self._known.update(self._members)
        self._ask(self._members, lambda places: places.lay_out(self._launch))

    def address(self) -> str:
        """IP address of the driver's node."""
        return self._cluster.address()

    def shortage(self) -> str | None:
        """If the places are not there yet: what is free, in words."""
        ready = self._places is not None and self._places.ready()
        return None if ready or self._headless() else self._cluster.shortage()

    def order(self, worker: int, order: Order) -> None:
        """Send an order; numbered, since a threaded actor may take two at once."""
        member = self._members[worker]
        assert member.actor is not None, f"worker {worker} was given an order before it said hello"
        if isinstance(order, Leave):
            self._streams.expect_end(worker)
        number = -1 if acts_at_once(order) else next(member.numbers)
        member.actor.control.remote(number, order)

    def add(self, worker: int, *, avoid: Collection[str] = (), gives_way: bool = False) -> None:
        """Start one more worker, in a place of its own."""
        assert worker not in self._known, f"worker {worker} has been there before"
        self._known.add(worker)
        self._members[worker] = Member(avoid=set(avoid), gives_way=gives_way)
        self.size += 1
        self._ask([worker], partial(self._place, worker))

    def kill(self, worker: int) -> None:
        """End a worker's process, also one that is lost already, and give its place back."""
        self._inbox.close(worker)
        self._streams.drop(worker)
        member = self._members.pop(worker)
        self.size -= 1
        if (place := self._streams.places.get(worker)) is not None:
            self._end_stopped(place)

        def end(places: Places) -> None:
            _end(member)
            places.release(worker)

        self._ask([], end)

    def stacks(self, workers: Collection[int]) -> dict[int, str]:
        """Those on this node are looked at from here, others by a process on their node."""
        found = {worker: "no stacks: it has not said where it is" for worker in workers}
        pids: dict[str, dict[int, int]] = {}  # node → worker → its process
        for worker in workers:
            if (place := self._streams.places.get(worker)) is not None:
                pids.setdefault(place.node, {})[worker] = place.pid
        if here := pids.pop(self._here, None):
            seen = stacks_of_all(here.values())
            found |= {worker: seen[pid] for worker, pid in here.items()}
        with ThreadPoolExecutor(max(len(pids), 1)) as looks:
            for seen in looks.map(lambda node: self._nodes.stacks(node, pids[node], self._actors_on(node)), pids):
                found |= seen
        return found

    def draining(self) -> Mapping[str, float]:
        """Nodes that were said to be taken away: id → seconds left."""
        return self._nodes.draining()

    def take(self, timeout: float) -> Incoming | None:
        """The next thing that came from any worker."""
        return self._inbox.take(timeout)

    def interrupt(self) -> None:
        """Put an `Interrupt` into the inbox."""
        self._inbox.put(Interrupt())

    def tell(self, came: Incoming) -> None:
        """Put something into the inbox."""
        self._inbox.put(came)

    def stop(self, *, grace: float) -> list[str]:
        """Let the ranks leave, then end their processes, give back their places, and see that all is gone."""
        if grace > 0:
            for worker, member in self._members.items():
                if member.actor is not None and worker not in self._streams.ended:
                    self.order(worker, Leave())
            self._wait_ended(grace)
        self._stopping = True
        if self._places is not None:
            self._places.stopping.set()
        self._clerk.drop()
        self._clerk.wait(give_up=self._headless)  # nobody starts anything any more
        for member in self._members.values():
            _end(member)
        left = self._wait_gone()
        self._streams.stop()
        self._members.clear()
        if self._places is not None:
            self._clerk.submit(self._places.stop)
            self._clerk.wait(give_up=self._headless)
        self._clerk.stop()
        self._nodes.stop()
        self._cluster.stop()
        return left

    # ---------------------------------------------------------------- in the clerk's thread
    def _ask(self, workers: Collection[int], act: Callable[[Places], None]) -> None:
        """Have the clerk do something; if it fails, these workers are lost."""
        places = self._places
        assert places is not None, "the group is not started"

        def run() -> None:
            try:
                act(places)
            except Exception as error:  # of any kind: a worker without a place can't be waited for
                for worker in workers:
                    if (member := self._members.get(worker)) is not None and member.actor is None:
                        self._inbox.put(Lost(worker=worker, cause=f"it got no place: {type(error).__name__}: {error}"))

        self._clerk.submit(run)

    def _place(self, worker: int, places: Places) -> None:
        """Start a worker in a new place."""
        if (member := self._members.get(worker)) is None:
            return  # killed meanwhile
        places.release(worker)
        homes = [place.node for n, place in list(self._streams.places.items()) if n in self._members and n != worker]
        self._launch(worker, places.reserve(worker, avoid=member.avoid, homes=homes))

    def _launch(self, worker: int, group: PlacementGroup, home: str | None = None) -> None:
        """Start a worker's actor; `home` is the node that its place is known to be on."""
        if (member := self._members.get(worker)) is None:
            return
        bundle = bundle_of(self._workers)
        actor = RankActor.options(  # type: ignore[attr-defined]
            num_cpus=bundle.get("CPU", 0),
            num_gpus=bundle.get("GPU", 0),
            resources={name: amount for name, amount in bundle.items() if name not in {"CPU", "GPU"}},
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
        ).remote(worker, self._roots, self._environment, self._lease, member.gives_way, self._logs)
        actor.run.remote()
        member.actor, member.home = actor, home
        again = partial(self._again, worker)
        self._streams.follow(Line(worker=worker, open=actor.events.remote, beat=actor.beat.remote, again=again))

    # ---------------------------------------------------------------- in other threads
    def _again(self, worker: int, error: BaseException) -> bool:
        """Whether a worker never began to live, as on a node that died just then; it is started elsewhere."""
        member = self._members.get(worker)
        if member is None or self._stopping or member.tries >= TRIES or not _never_ran(error):
            return False
        member.tries += 1
        member.avoid |= set() if member.home is None else {member.home}
        self._ask([worker], partial(self._place, worker))
        return True

    def _head_lost(self, address: str, silence: float, left: float) -> None:
        self._inbox.put(HeadLost(address=address, silence=silence, left=left))

    def _headless(self) -> bool:
        """Whether what is asked of the cluster may never be done."""
        return self._nodes.head_is_away

    def _node_died(self, node: str) -> None:
        """Whoever was to live there would wait for ever; ended now, it never ran, and is started elsewhere."""
        for worker, member in list(self._members.items()):
            if member.home == node and worker not in self._streams.places:
                _end(member)

    def _actors_on(self, node: str) -> list[Any]:
        there = {worker for worker, place in self._streams.places.items() if place.node == node}
        return [one.actor for worker, one in self._members.items() if worker in there]

    # ---------------------------------------------------------------- processes
    def _wait_ended(self, grace: float) -> None:
        until = time.monotonic() + grace
        while self._members.keys() - self._streams.ended and time.monotonic() < until:
            time.sleep(0.001)

    def _wait_gone(self) -> list[str]:
        """Wait for the processes on this machine to be gone; those elsewhere are their raylet's to end."""
        until = time.monotonic() + GONE
        here = [place for place in self._streams.places.values() if place.node == self._here]
        while (here := [place for place in here if _lives(place)]) and time.monotonic() < until:
            for place in here:
                self._end_stopped(place)
            time.sleep(0.001)
        return [str(place) for place in here]

    def _end_stopped(self, place: Place) -> None:
        """On this node: a stopped process does not hear that it shall end, and without a head nobody is told to."""
        if place.node == self._here and (self._headless() or state_of(place.pid) == "T") and _lives(place):
            with contextlib.suppress(OSError):
                os.kill(place.pid, signal.SIGKILL)


def _lives(place: Place) -> bool:
    """Whether a worker's process on this machine runs: not one that waits to be reaped, nor another of its number."""
    with contextlib.suppress(OSError):
        program = Path(f"/proc/{place.pid}/cmdline").read_bytes()  # empty while it ends: its memory goes first
        return (not program or b"RankActor" in program) and state_of(place.pid) not in ("", "Z")
    return False


def _end(member: Member) -> None:
    with contextlib.suppress(Exception):  # a dead actor, or a cluster that is gone: nothing is left to end
        if member.actor is not None:
            ray.kill(member.actor, no_restart=True)


def _never_ran(error: BaseException) -> bool:
    return isinstance(error, ActorUnschedulableError) or (
        isinstance(error, ActorDiedError) and "never ran" in str(error)
    )
