"""Form and leave the default process group of one generation; no other file creates or destroys one.

Forming is bounded by a short timeout and the store's keys carry the generation, so that a latecomer of an older one can
not disturb. Serial runs (a world of one without a store) never come here.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import socket
import struct

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # its stubs forget to export them
from torch.distributed.distributed_c10d import _set_pg_timeout

from workers.rank import Membership

__all__ = ["backend_of", "form", "interface_of", "leave"]

FORMING = 15.0  # seconds; a rank whose peer is missing may wait five times as long
_SIOCGIFADDR = 0x8915  # Linux: address of an interface, netdevice(7)


def form(membership: Membership, store: tuple[str, int], device: torch.device, address: str, *, timeout: float) -> None:
    """Form the default process group.

    Args:
        membership: this rank's place in the generation.
        store: host and port of the driver's TCPStore.
        device: what the rank computes on; decides the backend.
        address: this node's IP address, so that gloo does not guess an interface.
        timeout: seconds for every collective once it is formed.

    Raises:
        torch.distributed.DistError: the members did not meet in time.
    """
    interface = interface_of(address)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    limit = datetime.timedelta(seconds=min(timeout, FORMING))
    host, port = store
    client = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)
    dist.init_process_group(
        backend_of(device),
        store=PrefixStore(f"generation-{membership.generation}", client),
        rank=membership.rank,
        world_size=membership.world_size,
        timeout=limit,
        device_id=device if device.type == "cuda" else None,
    )
    _set_pg_timeout(datetime.timedelta(seconds=timeout), dist.group.WORLD)


def leave() -> None:
    """Destroy the default process group if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def sever() -> int:
    """Stand-in."""
    return 0


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
