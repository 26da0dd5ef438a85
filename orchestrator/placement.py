"""Find or start the cluster, see that it can hold the workers, and reserve a place for each of them.

Every worker has a placement group of its own, so that the place of one that is lost can be given back by itself: Ray
would move the place of a lost node elsewhere, and keep it there for nobody. At the start, where there are several
nodes, the places are first asked for as one group, so that a run gets all of them or none, laid out as it wants; then
they are exchanged one by one.
"""

from __future__ import annotations

import builtins
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from orchestrator.capacity import bundle_of, check_capacity, in_words, local_cpus, nodes_for
from orchestrator.errors import RankfireError, RunInterrupted, StartError, explain
from orchestrator.launch.access import see_entry
from orchestrator.launch.local_ray import out_of_our_group, own_token, signals_kept
from orchestrator.leaving import end_rays_processes
from orchestrator.spec import ClusterSpec, WorkersSpec
from orchestrator.spec_values import NODE_ID

__all__ = ["Cluster", "Places"]

KNOCK = 5.0  # seconds to reach a cluster's port
LOOK = 0.25  # seconds between two looks whether the run has ended while it waits for its places
ROOM = 8 << 20  # bytes; what Ray writes in a short run
OBJECT_STORE = 256 << 20  # bytes; messages are small, and tensors do not travel through it


class Cluster:
    """The connection to Ray and the places reserved there, from `start` to `stop`.

    Args:
        cluster: where it is.
        workers: what to reserve.
    """

    def __init__(self, cluster: ClusterSpec, workers: WorkersSpec) -> None:
        self._cluster = cluster
        self._workers = workers
        self.one_node = False  # whether one node is all there is
        self._owned = False
        self._print = builtins.print  # Ray puts its own in its place when it first tells of a worker
        self._environment: dict[str, str | None] = {}  # what Ray, or we for it, would leave in this process

    def start(self) -> None:
        """Connect, or start Ray on this machine.

        Raises:
            CapacityError: the cluster can't ever hold the workers.
            RunInterrupted: a signal came before it was there.
            StartError: this machine's disk is full, Ray does not start here, or there is no cluster at the address;
                names `cluster.address` or RAY_ADDRESS, as it was given.
        """
        self._connect()
        alive = [node for node in _nodes() if node["Alive"]]
        nodes = [node["Resources"] for node in alive]
        self.one_node = len(nodes) == 1 and not self._cluster.autoscale
        if not self._cluster.autoscale:
            check_capacity(self._workers, nodes, [node.get("Labels") or {} for node in alive])

    def shortage(self) -> str:
        """What is free at the moment, in words, for an error."""
        free = ray.available_resources()  # type: ignore[no-untyped-call]
        return in_words({name: free.get(name, 0.0) for name in bundle_of(self._workers)})

    def address(self) -> str:
        """IP address of this node."""
        return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]

    def node(self) -> str:
        """Id of this node."""
        return str(ray.get_runtime_context().get_node_id())

    def stop(self) -> None:
        """End the connection, and Ray with it if it was started here."""
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
        try:
            with signals_kept(), out_of_our_group():
                self._init(address, where)
        except KeyboardInterrupt:
            end_rays_processes()  # those of a half-made cluster nobody else knows
            raise RunInterrupted from None

    def _init(self, address: str | None, where: str) -> None:
        if address is not None:
            try:
                _knock(address)
                self._see_entry(address, where)
                ray.init(address=address, log_to_driver=True)
            except StartError:
                self._owned = False
                raise
            except (OSError, ValueError, RuntimeError) as error:
                self._owned = False
                raise StartError(
                    f"{where}: expected a Ray cluster at {address!r}, received {type(error).__name__}: {error}; see "
                    f"that it runs and that this machine may reach it, or leave {where} out to use this machine"
                ) from error
            return
        _see_room()
        own_token(os.environ)
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default, 15, is for work in the background
        try:
            ray.init(
                address="local",
                num_cpus=local_cpus(self._workers),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE,
                configure_logging=False,
                log_to_driver=True,
            )
        except RankfireError:
            raise
        except Exception as error:  # Ray's only one for a node that does not start in time
            end_rays_processes()
            raise StartError(_no_local(error)) from error

    def _see_entry(self, address: str, where: str) -> None:
        """See that the cluster lets this user in, and not everybody; a token that is wanted is shown.

        Raises:
            StartError: one of these is not so.
        """
        place = address.rpartition("//")[2]
        if not place.rpartition(":")[2].isdigit():
            return  # "auto" is a cluster of this machine, which its user has started
        if see_entry(f"{where}: {address}", place, os.environ, insecure=self._cluster.insecure):
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray does not show one of its own accord


class Places:
    """The places of the workers; all of it may wait for the cluster, so the driver's loop stays away.

    Args:
        workers: how many, what each reserves, and how they are laid out.
        one_node: whether there is nothing to lay out.
    """

    def __init__(self, workers: WorkersSpec, *, one_node: bool) -> None:
        self._workers = workers
        self._one_node = one_node
        self._gang: PlacementGroup | None = None
        self._own: dict[int, PlacementGroup] = {}
        self.stopping = threading.Event()

    def lay_out(self, placed: Callable[[int, PlacementGroup, str | None], None]) -> None:
        """Reserve the places of all workers; returns when they are reserved, or when `stopping` is set.

        Args:
            placed: called for each worker, with its place and the id of its node if that is known.
        """
        count, homes = self._workers.count + self._workers.spares, {}
        if not self._one_node:
            self._gang = placement_group(
                [bundle_of(self._workers)] * count,
                strategy=self._workers.placement,
                bundle_label_selector=[dict(self._workers.labels)] * count if self._workers.labels else None,
            )
            while not self._gang.wait(LOOK):
                if self.stopping.is_set():
                    return
            homes = placement_group_table(self._gang)["bundles_to_node_id"]
        for worker in range(count):
            home = homes.get(worker)
            placed(worker, self._ask(worker, None if home is None else f"in({home})"), home)
        if self._gang is not None:
            remove_placement_group(self._gang)
            self._gang = None

    def reserve(self, worker: int, *, avoid: Collection[str], homes: Collection[str]) -> PlacementGroup:
        """Ask for the place of one more worker; does not wait for it.

        Args:
            worker: its id.
            avoid: ids of nodes on which it shall not be.
            homes: ids of the nodes on which the others are.
        """
        return self._ask(worker, nodes_for(self._workers.placement, avoid=avoid, homes=homes))

    def release(self, worker: int) -> None:
        """Give back the place of a worker, if it has one."""
        if (group := self._own.pop(worker, None)) is not None:
            remove_placement_group(group)

    def ready(self) -> bool:
        """Whether all places that were asked for are there by now."""
        for worker, group in list(self._own.items()):
            try:
                there = bool(group.wait(0))
            except Exception:  # Ray's only one for a group that was removed
                there = self._own.get(worker) is not group
            if not there:
                return False
        return self._gang is None

    def stop(self) -> None:
        """Give all places back."""
        groups = [*self._own.values(), *([] if self._gang is None else [self._gang])]
        self._own.clear()
        self._gang = None
        if ray.is_initialized():
            for group in groups:
                remove_placement_group(group)
            for group in groups:
                _wait_removed(group)

    def _ask(self, worker: int, nodes: str | None) -> PlacementGroup:
        selector = {**self._workers.labels, **({} if nodes is None else {NODE_ID: nodes})}
        self._own[worker] = placement_group(
            [bundle_of(self._workers)], bundle_label_selector=[selector] if selector else None
        )
        return self._own[worker]


def _wait_removed(group: PlacementGroup) -> None:
    """Removal is asynchronous; wait a moment, so that the next run finds the places free."""
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        table = placement_group_table(group)
        if not table or table.get("state") == "REMOVED":
            return
        time.sleep(0.002)


def _see_room() -> None:
    """See that there is room for the files of a Ray that is started here: without, it waits for them half a minute.

    Raises:
        StartError: there is none.
    """
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
    disk = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(disk).free
    if free < ROOM:
        raise StartError(
            explain(
                "cluster",
                expected=f"room for Ray's own files (logs and sockets) in {folder}",
                received=f"a full disk, with {free >> 10} kB free",
                mend="free some, or let RAY_TMPDIR name a folder on another disk",
            )
        )


def _no_local(error: Exception) -> str:
    """In words: Ray did not start on this machine."""
    first = str(error).strip().partition("\n")[0]
    return explain(
        "cluster",
        expected="Ray to start on this machine",
        received=f"{type(error).__name__}: {first}" if first else type(error).__name__,
        mend="see that it has memory and CPUs to spare and try again, look into the newest session's logs in Ray's "
        "folder (RAY_TMPDIR, else /tmp/ray), or name a cluster that runs in cluster.address",
    )


def _knock(address: str) -> None:
    """See that somebody listens at `host:port`: Ray itself would try for minutes.

    Raises:
        OSError: nobody does.
    """
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK).close()


def _nodes() -> list[dict[str, Any]]:
    return list(ray.nodes())  # type: ignore[no-untyped-call]
