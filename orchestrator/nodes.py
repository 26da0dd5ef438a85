"""What the driver learns of the cluster's nodes: which are about to be taken away, and stacks of processes elsewhere.

All of it may hang while the cluster's head (GCS) is away, and some of Ray's own calls even end the process then; so
whoever calls here waits for a bounded time, and gets words, or what was known before.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from workers.stacks import stacks_of

__all__ = ["Nodes"]

POLL = 0.5  # seconds between two looks for nodes that are draining
ANSWER = 2.0  # seconds that the head has for one answer
ELSEWHERE = 3.0  # seconds for stacks from other nodes: a process must be started there

_logger = logging.getLogger(__name__)


class Nodes:
    """The nodes of the cluster, from `start` to `stop`."""

    def __init__(self) -> None:
        self._deadlines: dict[str, float] = {}  # node id → on the wall clock, in seconds
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
        return {node: max(deadline - time.time(), 0.0) for node, deadline in list(self._deadlines.items())}

    def stacks(self, processes: Mapping[int, tuple[str, int]]) -> dict[int, str]:
        """Stacks of processes on other nodes.

        Args:
            processes: worker → id of its node, and its process id there.
        """
        found: dict[int, str] = {}
        looks = [
            threading.Thread(target=self._look, args=(worker, node, pid, found), daemon=True)
            for worker, (node, pid) in processes.items()
        ]
        for look in looks:
            look.start()
        until = time.monotonic() + ELSEWHERE + 0.5
        for look in looks:
            look.join(max(until - time.monotonic(), 0.0))
        return {
            worker: found.get(
                worker, f"no stacks of pid {pid}: node {node[:12]} does not answer within {ELSEWHERE:g} s"
            )
            for worker, (node, pid) in processes.items()
        }

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(ANSWER + 1.0)
            self._thread = None

    def _look(self, worker: int, node: str, pid: int, found: dict[int, str]) -> None:
        """Have a process on that node look at that one; it needs no CPU of its own."""
        try:
            there = ray.remote(num_cpus=0, max_retries=0)(stacks_of).options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            )
            found[worker] = ray.get(there.remote(pid), timeout=ELSEWHERE)
        except ray.exceptions.GetTimeoutError:
            return
        except Exception as error:  # the node may be gone, in any of Ray's ways to say so
            found[worker] = f"no stacks of pid {pid}: node {node[:12]} can't be asked ({type(error).__name__})"

    def _watch(self, address: str) -> None:
        """Ray has no public way to ask; of its private ones, this one survives a head that is away."""
        try:
            client: Any = ray._raylet.GcsClient(address=address)  # type: ignore[attr-defined]
        except Exception as error:  # another version's
            _logger.warning("this Ray does not tell which nodes are draining", exc_info=error)
            return
        while not self._stopping.wait(POLL):
            try:
                draining: Mapping[str, int] = client.get_draining_nodes(timeout=ANSWER)
            except Exception as error:  # Ray has several for a head that is away
                _logger.debug("the head did not answer", exc_info=error)
                continue
            for node, deadline in draining.items():
                self._deadlines[node] = deadline / 1000.0 if deadline else math.inf
