"""Form and leave the process groups of one generation, and cut them from any thread; no other file makes or ends one.

Forming is bounded, and the store's keys carry the generation, so that a latecomer of an older one can not disturb.
Whoever makes more groups (`new_group`, a mesh) does so within `watched()`. Serial runs (a world of one without a store)
never come here. Called by the session: `form` and `leave` on the training thread, `sever` on any.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import gc
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]  # its stubs forget to export it
from torch.distributed.distributed_c10d import _set_pg_timeout, _world

from workers.links import Links, StoreLine
from workers.rank import Membership

__all__ = ["FORMING", "backend_of", "form", "interface_of", "leave", "sever", "watched"]

FORMING = 15.0  # seconds that the members may take to meet, and again to connect
CONNECTING = 15.0  # seconds that the driver's store may take to answer the first time
SILENCE = 10.0  # seconds after which a machine that does not answer at all counts as lost
_SIOCGIFADDR = 0x8915  # Linux: address of an interface, netdevice(7)


@dataclass(frozen=True, slots=True)
class _Generation:
    links: Links
    timeout: datetime.timedelta


_generation: _Generation | None = None  # the one that this process is in, or was cut out of
_line: StoreLine | None = None  # kept over generations
_cut_up_to = -1  # no generation up to this one is formed any more


def form(
    membership: Membership,
    store: tuple[str, int],
    device: torch.device,
    address: str,
    *,
    timeout: float,
    forming: float = FORMING,
) -> None:
    """Form the default process group.

    A member that does not come is named after `forming` seconds. One that dies in the middle is noticed at once by who
    calls it; who waits for its call does so until `sever` or for `forming` seconds (gloo alone: five times as long).

    Args:
        membership: this rank's place in the generation.
        store: host and port of the driver's TCPStore.
        device: what the rank computes on; decides the backend.
        address: this node's IP address, so that gloo does not guess an interface.
        timeout: seconds for every collective once it is formed.
        forming: seconds that the members may take to meet, and again to connect.

    Raises:
        torch.distributed.DistError: the members did not meet in time, or `sever` was called.
        RuntimeError: a member is gone.
    """
    global _generation
    assert _generation is None, "leave() comes before the next generation"
    _spare_the_collector()
    interface = interface_of(address)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    links = Links(membership, limit=min(timeout, forming))
    _generation = _Generation(links, datetime.timedelta(seconds=timeout))
    if membership.generation <= _cut_up_to:
        links.sever()
    if device.type == "cuda":
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # else torch ends the process after an abort
    hook = sys.excepthook
    try:
        keys = links.meet_at(_line_to(store, min(timeout, CONNECTING)))
        _meet(membership, keys, links.limit)
        with watched():
            dist.init_process_group(
                backend_of(device),
                store=keys,
                rank=membership.rank,
                world_size=membership.world_size,
                timeout=datetime.timedelta(seconds=links.limit),
                device_id=device if device.type == "cuda" else None,
            )
        links.bound(SILENCE)
    except BaseException:
        leave()
        raise
    finally:
        sys.excepthook = hook  # torch puts one more around it every time


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Make groups within this block, all members alike: `sever` reaches them, and they get the generation's timeout.

    Example:
        >>> with watched():  # doctest: +SKIP
        ...     pair = dist.new_group([0, 1])
    """
    assert _generation is not None, "watched() comes after form()"
    before = set(_world.pg_names)
    with _generation.links:
        yield
    for group in set(_world.pg_names) - before:
        _set_pg_timeout(_generation.timeout, group)


def sever(generation: int | None = None) -> int:
    """Cut this rank out of its generation, from any thread: what waits in a collective raises, here and at the peers.

    Every member must do so for itself, since one that waits for a stopped peer does not notice that others are cut. A
    group whose traffic flows should not be cut (gloo then loses one wake-up in ten, until the timeout): wait a moment
    for the rank's own error first. Until `leave` nothing can be formed again.

    Args:
        generation: also let none up to this one be formed any more, for a rank that may be about to.

    Returns:
        How many links were cut; 0 if there was nothing to cut.
    """
    global _cut_up_to
    if generation is not None:
        _cut_up_to = max(_cut_up_to, generation)
    current = _generation
    if current is None or (generation is not None and current.links.membership.generation > generation):
        return 0
    cut = current.links.sever()
    _abort_accelerators()
    return cut


def leave() -> None:
    """Let go of all groups; does nothing without any. After a fault it does not wait for anybody.

    Drop models that were wrapped, optimizers and exceptions before: they refer to groups, whose threads live on with
    them. A thread of gloo that is still letting go of its last collective while the interpreter ends asks for the GIL,
    and that aborts the process (one end in thirty on a busy machine, if nobody leaves).
    """
    global _generation
    generation, _generation = _generation, None
    is_fault = generation is not None and generation.links.severed
    if generation is not None:
        generation.links.sever()  # gloo closes nothing as long as anything refers to a group
    groups = list(_world.pg_names)
    if dist.is_initialized():
        dist.destroy_process_group()
    _world.group_count = 0  # torch counts those that failed as well, and a newcomer would count from 0
    if "torch.distributed.tensor" in sys.modules:
        _forget_meshes()
    if generation is not None:
        gc.collect()
    if is_fault:  # the end of a group waits for a collective that hangs
        threading.Thread(target=groups.clear, name="graveyard", daemon=True).start()


def backend_of(device: torch.device) -> str:
    """The backend for a device, with gloo beside it for tensors on the CPU.

    Example:
        >>> backend_of(torch.device("cpu"))
        'gloo'
    """
    if device.type == "cpu":
        return "gloo"
    return f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"


def interface_of(address: str) -> str | None:
    """Name of the network interface that carries an IPv4 address; None if no interface does."""
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an IPv4 address
                continue
        if socket.inet_ntoa(answer[20:24]) == address:
            return name
    return None


def _line_to(store: tuple[str, int], limit: float) -> StoreLine:
    """The connection of the generation before, if there is one and it still works."""
    global _line
    if _line is not None and (_line.address != store or not _line.answers()):
        _line.cut()
        _line = None
    if _line is None:
        _line = StoreLine(store, limit)
    return _line


def _meet(membership: Membership, keys: Store, limit: float) -> None:
    """Wait until every member is here, since gloo would not tell who is missing."""
    places = [f"here/{rank}" for rank in range(membership.world_size)]
    keys.set(places[membership.rank], "")
    try:
        keys.wait(places, datetime.timedelta(seconds=limit))
    except dist.DistStoreError as error:
        missing = [rank for rank, place in enumerate(places) if not keys.check([place])]
        raise dist.DistStoreError(
            f"process group of generation {membership.generation}: expected {membership.world_size} members within "
            f"{limit:g} s, not here: rank {', '.join(map(str, missing))}"
        ) from error


def _abort_accelerators() -> None:
    """Abort NCCL's communicators, which wait on the device; torch still knows the groups afterwards."""
    if not dist.is_nccl_available():
        return
    groups = sorted(_world.pg_names, key=lambda group: _world.pg_names[group], reverse=True)  # on all ranks alike
    backends = [group._get_backend(kind) for group in groups for kind in group._device_types]
    communicators = [backend for backend in backends if isinstance(backend, dist.ProcessGroupNCCL)]
    if communicators:
        communicators[-1]._group_start()  # as one, since one abort may wait for another
        for communicator in communicators:
            communicator.abort()
        communicators[-1]._group_end()


def _forget_meshes() -> None:
    """Empty this thread's cache of DTensor, which compares meshes without the rank and would give back an old one."""
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache

    _clear_sharding_prop_cache()  # type: ignore[no-untyped-call]


_spared = False


def _spare_the_collector() -> None:
    """Let the collector never again look at what is there before the first group: that would take 0.3 s in `leave`."""
    global _spared
    if not _spared:
        _spared = True
        gc.collect(1)  # what is young; all of it would take as long, at every start
        gc.freeze()
