"""Ranks as plain processes with a gloo group: for tests of what needs more than one, and no Ray.

A test gives a function of (rank, store, ...) and gets what each rank returned, in the order of ranks.
"""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import multiprocessing.context
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch.distributed import TCPStore

from workers import process_group
from workers.rank import Membership

__all__ = ["LIMIT", "PRELOAD", "Ranks", "forkserver", "joined", "ranks", "serve_store"]

LIMIT = 60.0  # seconds, for what takes one
PRELOAD = ["pytest", "torch._dynamo", "torch.distributed", "torch.nn.parallel", "torchmetrics"]
PRELOAD += ["workers.session", "workers.saving"]
"""What the fork server imports; the first one who starts it in this process decides, so all ask for the same."""


class Ranks:
    """A world of processes that live as long as the block in which `ranks` opened them."""

    def __init__(self, world_size: int, pool: ProcessPoolExecutor) -> None:
        self.world_size = world_size
        self._pool = pool

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call `function(membership, store, *args)` on every rank at the same time."""
        store = serve_store()
        address = ("127.0.0.1", store.port)
        calls = [
            self._pool.submit(function, Membership(generation=0, rank=rank, world_size=self.world_size), address, *args)
            for rank in range(self.world_size)
        ]
        return [call.result(timeout=LIMIT) for call in calls]


def forkserver() -> multiprocessing.context.ForkServerContext:
    """The context of processes that begin with torch imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def serve_store() -> TCPStore:
    """A store at which ranks meet, on a port chosen by the system; it ends with the object.

    It gets a listener of IPv4: for others torch asks DNS, at each connection, who 127.0.0.1 is.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    return TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=datetime.timedelta(seconds=LIMIT),
        master_listen_fd=listener.detach(),
    )


@contextlib.contextmanager
def ranks(world_size: int) -> Iterator[Ranks]:
    """Processes for `world_size` ranks; they start with the first call, and end with the block."""
    with ProcessPoolExecutor(
        world_size, mp_context=forkserver(), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        yield Ranks(world_size, pool)


@contextlib.contextmanager
def joined(membership: Membership, store: tuple[str, int], timeout: float = 20.0) -> Iterator[torch.device]:
    """Inside a rank: the default process group of a generation, on the CPU."""
    device = torch.device("cpu")
    process_group.form(membership, store, device, "127.0.0.1", timeout=timeout)
    try:
        yield device
    finally:
        process_group.leave()
