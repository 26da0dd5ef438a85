"""Fixtures of the whole suite: private folders, the leftovers check after every module, a Ray cluster.

The session gets its own HOME, TMPDIR and Ray folder before anything imports Ray (which reads part of its
environment on import), so that no test sees, or touches, another Ray on this machine.
"""

from __future__ import annotations

import builtins
import contextlib
import itertools
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import fsspec
import hypothesis
import psutil
import pytest

from tests.leftovers import MARK, Footprint, alive_in_ray, left_since, session_processes
from tests.object_store import BUCKET, object_store_in
from tests.waiting import expect_none
from workers.locations import storage_at
from workers.storage import Storage

hypothesis.settings.register_profile("strict", deadline=None)
hypothesis.settings.load_profile("strict")

PRIVATE = pytest.StashKey[Path]()
ENVIRONMENT = pytest.StashKey[pytest.MonkeyPatch]()
CLUSTER_NUMBERS = itertools.count()
AGENTS = ("ray::RuntimeEnvAgent", "ray::DashboardAgent")
"""Ray's own, which wait for a minute before they end with a raylet, if the head was killed before."""
FAST_HEALTH_CHECK = {
    "initial_delay_ms": "1000", "period_ms": "500", "timeout_ms": "1000", "failure_threshold": "3",
}  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Give the session folders and an environment of its own."""
    # Not below $TMPDIR: Ray puts unix sockets there, whose path may have at most 107 bytes.
    root = Path(tempfile.mkdtemp(prefix="rf", dir="/tmp"))
    for name in ("home", "tmp", "ray"):
        (root / name).mkdir()
    config.stash[PRIVATE] = root
    patch = config.stash[ENVIRONMENT] = pytest.MonkeyPatch()
    patch.setenv(MARK, uuid.uuid4().hex)
    patch.setenv("HOME", str(root / "home"))
    patch.setenv("TMPDIR", str(root / "tmp"))
    patch.setattr(tempfile, "tempdir", str(root / "tmp"))
    patch.setenv("RAY_TMPDIR", str(root / "ray"))
    patch.setenv("RAY_AUTH_MODE", "disabled")
    patch.setenv("RAY_DEDUP_LOGS", "0")
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.delenv("RAY_ADDRESS", raising=False)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give the environment back and remove the session's folders when the interpreter ends."""
    config.stash[ENVIRONMENT].undo()
    # Not now: multiprocessing has a folder in there, and removes it itself with priority -100.
    Finalize(None, shutil.rmtree, args=(config.stash[PRIVATE], True), exitpriority=-200)


@pytest.fixture(scope="session")
def private_root(pytestconfig: pytest.Config) -> Path:
    """The session's own folder; short, so that Ray's sockets fit below it."""
    return pytestconfig.stash[PRIVATE]


@pytest.fixture(scope="module", autouse=True)
def nothing_left(private_root: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test module: no process, thread, shared memory or temporary file of it may be left."""
    temporary = private_root / "tmp"
    before = Footprint.now(temporary)
    yield
    expect_none(lambda: left_since(before, temporary), f"{request.node.name} left behind")


@pytest.fixture(scope="module")
def ray_cluster(private_root: Path) -> Iterator[str]:
    """A local Ray of this module's own with 8 CPUs; yields its address.

    Afterwards no actor and no placement group may be left in it, and none of its processes on the machine.
    """
    import ray

    assert not ray.is_initialized(), "another module left its Ray running"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "print", print)  # Ray puts its own there when it tells of a worker
        patch.setenv("RAY_TMPDIR", str(private_root / f"r{next(CLUSTER_NUMBERS)}"))
        older = session_processes(private_root / "tmp")
        context = ray.init(
            num_cpus=8,
            include_dashboard=False,
            object_store_memory=80 * 2**20,
            log_to_driver=False,
            configure_logging=False,
        )
        try:
            yield context.address_info["address"]
            expect_none(alive_in_ray, "left in Ray")
        finally:
            processes = session_processes(private_root / "tmp") - older
            ray.shutdown()
            _, alive = psutil.wait_procs(processes, timeout=15)
    assert not alive, f"processes of Ray that outlived ray.shutdown(): {alive}"


@pytest.fixture(scope="module")
def ray_nodes(private_root: Path) -> Iterator[RayNodes]:
    """A Ray of several nodes on this machine, of this module's own, with nobody connected.

    The head has 4 CPUs; a test adds nodes and may kill them. What the head takes for a dead node it knows in a second.
    """
    with nodes_of_ray(private_root) as nodes:
        yield nodes


@contextlib.contextmanager
def nodes_of_ray(private_root: Path, **environment: str) -> Iterator[RayNodes]:
    """A Ray of several nodes as above, for a test that does worse things to it.

    Args:
        private_root: the session's own folder.
        environment: further variables for all that is started meanwhile.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "print", print)
        patch.setenv("RAY_TMPDIR", str(private_root / f"r{next(CLUSTER_NUMBERS)}"))
        for name, value in FAST_HEALTH_CHECK.items():
            patch.setenv(f"RAY_health_check_{name}", value)
        for name, value in environment.items():
            patch.setenv(name, value)
        older = session_processes(private_root / "tmp")
        nodes = RayNodes()
        try:
            yield nodes
        finally:
            processes = session_processes(private_root / "tmp") - older
            nodes.stop()
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    if process.name() in AGENTS:
                        process.kill()
            _, alive = psutil.wait_procs(processes, timeout=15)
    assert not alive, f"processes of Ray that outlived their cluster: {alive}"


class RayNodes:
    """Nodes of one cluster."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._addresses = itertools.count(2)
        self._given = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
        self._cluster: Any = Cluster()
        self.others: list[Any] = []  # the nodes that are up, beside the head
        self.head = self.add(4)
        self.others.clear()
        self.address: str = self._cluster.address

    def add(self, cpus: int, **more: Any) -> Any:
        """One more node, with an address of its own, which Ray would not give it on one machine."""
        # Not 127.0.0.1, in whose place Ray puts that of a network card.
        address = f"127.0.0.{next(self._addresses)}"
        self.others.append(self._cluster.add_node(num_cpus=cpus, node_ip_address=address, **self._given, **more))
        return self.others[-1]

    def kill(self, node: Any) -> Any:
        """SIGKILL to a node's raylet, as when a machine goes away; the process, defunct until it is awaited."""
        raylet = node.all_processes["raylet"][0].process
        raylet.kill()
        return raylet

    def remove(self, node: Any) -> None:
        """End what is left of a node."""
        self.others.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def stop(self) -> None:
        """End the cluster."""
        self._cluster.shutdown()


@pytest.fixture(scope="session")
def object_store(private_root: Path) -> Iterator[Mapping[str, str]]:
    """A real S3 with a bucket, and the environment that leads to it; kept until the session ends."""
    with object_store_in(private_root / "weed") as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield environment


@pytest.fixture(params=["folder", "memory", "s3"])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    """An empty storage of each kind."""
    yield from _storage(request)


@pytest.fixture(params=["folder", "s3"])
def durable(request: pytest.FixtureRequest) -> Iterator[Storage]:
    """An empty storage of each kind that another process can reach."""
    yield from _storage(request)


def _storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    if request.param == "folder":
        yield storage_at(request.getfixturevalue("tmp_path") / "storage")
    elif request.param == "memory":
        yield storage_at(f"memory://{uuid.uuid4().hex}")
        fsspec.filesystem("memory").store.clear()
        fsspec.filesystem("memory").pseudo_dirs[:] = [""]
    else:
        request.getfixturevalue("object_store")
        yield storage_at(f"s3://{BUCKET}/{uuid.uuid4().hex}")
