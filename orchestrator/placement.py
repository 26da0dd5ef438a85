"""Find or start the cluster, see that it can hold the workers, and reserve their places.

With `group.py` the only file of the driver that imports `ray`.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from orchestrator.errors import CapacityError, StartError
from orchestrator.spec import ClusterSpec, WorkersSpec

__all__ = ["Cluster", "bundle_of", "check_capacity"]

OVERSUBSCRIBE = 8  # ranks per core that a laptop may be asked for
KNOCK = 5.0  # seconds to reach a cluster's port
_KEYS = {"CPU": "cpus", "GPU": "gpus"}  # resource → its key in a job file
OBJECT_STORE = 256 << 20  # bytes; messages are small, and tensors do not travel through it


def bundle_of(workers: WorkersSpec) -> dict[str, float]:
    """What one worker reserves.

    Example:
        >>> bundle_of(WorkersSpec(count=2, cpus=1.0))
        {'CPU': 1.0}
    """
    bundle = {"CPU": workers.cpus, "GPU": workers.gpus, **workers.resources}
    return {name: amount for name, amount in bundle.items() if amount}


def check_capacity(workers: WorkersSpec, nodes: list[Mapping[str, float]]) -> None:
    """See whether nodes could hold the workers if nothing else ran there.

    Args:
        workers: how many, and what each needs.
        nodes: the total resources of every node.

    Raises:
        CapacityError: they never could; says what is asked and what is there.
    """
    count, bundle = workers.count + workers.spares, bundle_of(workers)
    rooms = [min(int((node.get(name, 0.0) + 1e-9) / amount) for name, amount in bundle.items()) for node in nodes]
    asked = f"{count} workers of {_words(bundle)} each, placed {workers.placement}"
    if workers.placement == "STRICT_PACK":
        enough = max(rooms, default=0) >= count
    elif workers.placement == "STRICT_SPREAD":
        enough = sum(1 for room in rooms if room) >= count
    else:
        enough = sum(rooms) >= count
    if not enough:
        raise CapacityError.of(asked=asked, there=_there(nodes, bundle), mend=_mend(count, bundle, nodes))


class Cluster:
    """The connection to Ray and the places reserved there, from `start` to `stop`.

    Args:
        cluster: where it is.
        workers: what to reserve.
    """

    def __init__(self, cluster: ClusterSpec, workers: WorkersSpec) -> None:
        self._cluster = cluster
        self._workers = workers
        self._owned = False
        self._print = builtins.print  # Ray puts its own in its place when it first tells of a worker
        self._environment: dict[str, str | None] = {}  # what Ray, or we for it, would leave in this process
        self.group: PlacementGroup | None = None
        self._own: dict[int, PlacementGroup] = {}

    def start(self) -> PlacementGroup:
        """Connect, or start Ray on this machine, and ask for the places; does not wait for them.

        Raises:
            CapacityError: the cluster can't ever hold the workers.
            StartError: there is no cluster at the address; names `cluster.address` or RAY_ADDRESS, as it was given.
        """
        self._connect()
        if not self._cluster.autoscale:
            check_capacity(self._workers, [node["Resources"] for node in _nodes() if node["Alive"]])
        count = self._workers.count + self._workers.spares
        self.group = placement_group([bundle_of(self._workers)] * count, strategy=self._workers.placement)
        return self.group

    def reserve(self, worker: int, avoid: Collection[str]) -> PlacementGroup:
        """Ask for one more place, in a group of its own and away from these nodes; does not wait for it."""
        selector = [{"ray.io/node-id": f"!in({','.join(sorted(avoid))})"}] if avoid else None
        self._own[worker] = placement_group([bundle_of(self._workers)], bundle_label_selector=selector)
        return self._own[worker]

    def release(self, worker: int) -> None:
        """Give back the place of a worker that has one of its own."""
        if (group := self._own.pop(worker, None)) is not None:
            remove_placement_group(group)

    def ready(self) -> bool:
        """Whether the places are there by now."""
        return self.group is not None and bool(self.group.wait(0))

    def shortage(self) -> str:
        """What is free at the moment, in words, for an error."""
        free = ray.available_resources()  # type: ignore[no-untyped-call]
        return _words({name: free.get(name, 0.0) for name in bundle_of(self._workers)})

    def address(self) -> str:
        """IP address of this node."""
        return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]

    def node(self) -> str:
        """Id of this node."""
        return str(ray.get_runtime_context().get_node_id())

    def stop(self) -> None:
        """Give the places back; end Ray if it was started here."""
        groups = [*self._own.values(), *([] if self.group is None else [self.group])]
        if ray.is_initialized():
            for group in groups:
                remove_placement_group(group)
            for group in groups:
                self._wait_removed(group)
        self.group = None
        self._own.clear()
        if self._owned:
            ray.shutdown()
            self._owned = False
            builtins.print = self._print
            for name, value in self._environment.items():
                if value is None:
                    os.environ.pop(name, None)

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        where = "cluster.address" if self._cluster.address else "RAY_ADDRESS"
        address = self._cluster.address or os.environ.get("RAY_ADDRESS") or None
        self._environment = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_worker_niceness")}
        self._owned = True
        with _signals_kept():
            self._init(address, where)

    def _init(self, address: str | None, where: str) -> None:
        if address is not None:
            try:
                _knock(address)
                ray.init(address=address, log_to_driver=True)
            except (OSError, ValueError, RuntimeError) as error:
                self._owned = False
                raise StartError(
                    f"{where}: expected a Ray cluster at {address!r}, received {type(error).__name__}: {error}; see "
                    f"that it runs and that this machine may reach it, or leave {where} out to use this machine"
                ) from error
            return
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default, 15, is for work in the background
        ray.init(
            address="local",
            num_cpus=_local_cpus(self._workers),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE,
            configure_logging=False,
            log_to_driver=True,
        )

    def _wait_removed(self, group: PlacementGroup) -> None:
        """Removal is asynchronous; wait a moment, so that the next run finds the places free."""
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            table = ray.util.placement_group_table(group)
            if not table or table.get("state") == "REMOVED":
                return
            time.sleep(0.002)


def _knock(address: str) -> None:
    """See that somebody listens at `host:port`: Ray itself would try for minutes.

    Raises:
        OSError: nobody does.
    """
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK).close()


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself and ends the process at once; the run ends it well, also while Ray starts."""
    import ray._private.utils as theirs

    mine = signal.getsignal(signal.SIGTERM)
    take: Any = getattr(theirs, "set_sigterm_handler", None)
    if take is not None:
        theirs.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        if take is not None:
            theirs.set_sigterm_handler = take
        if threading.current_thread() is threading.main_thread() and mine is not None:
            signal.signal(signal.SIGTERM, mine)  # for a Ray that goes another way


def _nodes() -> list[dict[str, Any]]:
    return list(ray.nodes())  # type: ignore[no-untyped-call]


def _local_cpus(workers: WorkersSpec) -> int:
    """CPUs that a local Ray is told it has: all cores, or more if a few more ranks are asked for."""
    cores = os.cpu_count() or 1
    asked = (workers.count + workers.spares) * workers.cpus
    if asked > cores * OVERSUBSCRIBE:
        raise CapacityError.of(
            asked=f"{workers.count + workers.spares} workers of {workers.cpus:g} CPU each",
            there=f"this machine with {cores} cores (at most {OVERSUBSCRIBE} ranks share one)",
            mend="ask for fewer workers, or give cluster.address",
        )
    return max(cores, int(-(-asked // 1)))


def _words(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())


def _mend(count: int, bundle: Mapping[str, float], nodes: list[Mapping[str, float]]) -> str:
    """What to ask less of: what no node has enough of for one worker, else what all together are short of."""
    for name, amount in bundle.items():
        if all(node.get(name, 0.0) < amount for node in nodes):
            if name in _KEYS:
                return f"ask for fewer {_KEYS[name]}, or add nodes that have them"
            return f"ask for less of {name!r}, or add nodes that have it"
    for name, amount in bundle.items():
        if name != "CPU" and sum(node.get(name, 0.0) for node in nodes) < count * amount:
            return f"ask for fewer workers or {_KEYS.get(name, repr(name))}, or add nodes"
    return "ask for fewer workers or add nodes"


def _there(nodes: list[Mapping[str, float]], bundle: Mapping[str, float]) -> str:
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in bundle}
    best = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in bundle}
    several = f", at most {_words(best)} on one" if len(nodes) > 1 else ""
    return f"a cluster of {len(nodes)} node{'s' if len(nodes) != 1 else ''} with {_words(total)} in all{several}"
