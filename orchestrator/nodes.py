"""What the driver learns of the nodes: which are about to be taken away, where they listen, stacks of processes there.

All of it may hang while the cluster's head (GCS) is away, and some of Ray's own calls even end the process then; so
whoever calls here waits for a bounded time, and gets words, or what was known before.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.contact import Contact, limit_of
from workers.stacks import stacks_of_all

__all__ = ["Nodes"]

POLL = 0.5  # seconds between two looks for nodes that are draining
ANSWER = 2.0  # seconds that the head has for one answer
PATIENT = 5.0  # the same when it did not give the one before
SELDOM = 6  # looks for draining nodes for one at all nodes, of which there may be many
NEIGHBOURS = 1.0  # seconds that a node's workers have to look at each other
ELSEWHERE = 3.0  # seconds for a process that is started on another node to look

_logger = logging.getLogger(__name__)


class Nodes:
    """The nodes of the cluster, from `start` to `stop`.

    Args:
        died: told the id of each node that the cluster has given up, in the thread that looks.
        lost: told once that the head counts as lost, likewise: its address, the seconds of its silence, and in how
            many the run should have ended.
    """

    def __init__(
        self,
        died: Callable[[str], None] = lambda _: None,
        lost: Callable[[str, float, float], None] = lambda *_: None,
    ) -> None:
        self._died = died
        self._lost = lost
        self._contact: Contact | None = None
        self._dead: set[str] = set()
        self._told: dict[str, float] = {}  # node id → deadline as it was told, in ms on the wall clock; 0: none
        self._deadlines: dict[str, float] = {}  # node id → the same in seconds on a clock that does not jump
        self._ports: dict[str, tuple[str, int]] = {}  # node id → where its raylet listens
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look for nodes that are draining; Ray is initialized."""
        address = str(ray.get_runtime_context().gcs_address)
        self._thread = threading.Thread(target=self._watch, args=(address,), name="rankfire-nodes", daemon=True)
        self._thread.start()

    def draining(self) -> Mapping[str, float]:
        """Nodes that were said to be taken away: id → seconds left, infinite if there is no deadline.

        A node stays here when it is gone, so that a loss can be told from a crash.
        """
        now = time.monotonic()
        return {node: max(deadline - now, 0.0) for node, deadline in list(self._deadlines.items())}

    @property
    def head_is_away(self) -> bool:
        """Whether the head has not answered of late, so that what is asked of it may wait for ever."""
        return self._contact is not None and self._contact.away(time.monotonic())

    def port(self, node: str) -> tuple[str, int] | None:
        """Where a node listens as long as it is one: address and port of its raylet, if they are known."""
        return self._ports.get(node)

    def stacks(self, node: str, pids: Mapping[int, int], neighbours: Collection[Any]) -> dict[int, str]:
        """Stacks of processes on another node, within a bounded time.

        Args:
            node: its id.
            pids: worker → process id there.
            neighbours: actors on that node, each of which can look at all of them if it is well.
        """
        found: dict[int, str] = {}
        look = threading.Thread(target=self._look, args=(node, list(pids.values()), neighbours, found), daemon=True)
        look.start()
        look.join(NEIGHBOURS + ELSEWHERE)
        missing = f"node {node[:12]} does not answer"
        return {worker: found.get(pid, f"no stacks of pid {pid}: {missing}") for worker, pid in pids.items()}

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(ANSWER + 1.0 if not self.head_is_away else POLL)
            self._thread = None

    def _look(self, node: str, pids: list[int], neighbours: Collection[Any], found: dict[int, str]) -> None:
        """Ask those who are there; if nobody answers, have a process started there, which takes a second or more."""
        asked: list[Any] = [actor.stacks.remote(pids) for actor in neighbours]
        until = time.monotonic() + NEIGHBOURS
        while asked and not found:
            ready, asked = ray.wait(asked, timeout=max(until - time.monotonic(), 0.0))
            if not ready:
                break
            with contextlib.suppress(ray.exceptions.RayError):
                found.update(ray.get(ready[0]))
        if not found:
            pinned = NodeAffinitySchedulingStrategy(node, soft=False)
            there = ray.remote(num_cpus=0, max_retries=0)(stacks_of_all).options(scheduling_strategy=pinned)
            with contextlib.suppress(ray.exceptions.RayError):  # too late, or the node is gone
                seen: dict[int, str] = ray.get(there.remote(pids), timeout=ELSEWHERE)
                found.update(seen)

    def _watch(self, address: str) -> None:
        """Ray has no public way to ask; of its private ones, this one survives a head that is away."""
        try:
            client: Any = ray._raylet.GcsClient(address=address)  # type: ignore[attr-defined]
        except Exception as error:  # another version's
            _logger.warning("this Ray does not tell which nodes are draining", exc_info=error)
            return
        contact = self._contact = Contact(limit_of(os.environ), time.monotonic())
        for look in itertools.count():
            try:
                self._look_at_all(client, seldom=look % SELDOM == 0, timeout=PATIENT if self.head_is_away else ANSWER)
                contact.answered(time.monotonic())
            except Exception as error:  # Ray has several for a head that is away
                _logger.debug("the head did not answer", exc_info=error)
                if contact.unanswered(now := time.monotonic()):
                    self._lost(address, contact.silence(now), contact.left(now))
            if self._stopping.wait(POLL):
                return

    def _look_at_all(self, client: Any, *, seldom: bool, timeout: float) -> None:
        self._take_in_drains(client.get_draining_nodes(timeout=timeout))
        if seldom:
            self._take_in(client.get_all_node_info(timeout=timeout))

    def _take_in_drains(self, told: Mapping[str, float]) -> None:
        """Each deadline is read by the wall clock once: that may jump afterwards."""
        for node, deadline in told.items():
            if self._told.get(node) != deadline:
                self._told[node] = deadline
                left = deadline / 1000.0 - time.time() if deadline else math.inf
                self._deadlines[node] = time.monotonic() + left

    def _take_in(self, nodes: Mapping[Any, Any]) -> None:
        self._ports |= {node.hex(): (info.node_manager_address, info.node_manager_port) for node, info in nodes.items()}
        for node, info in nodes.items():
            if info.state == info.DEAD and node.hex() not in self._dead:
                self._dead.add(node.hex())
                self._died(node.hex())
