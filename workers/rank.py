"""Where a worker is and which rank it holds: two values, and the one order in which ranks are dealt out.

Ranks are ordered by (node, GPU id), so that neighbours in rank are neighbours on the wire. Locality is keyed on the
node id, never on an address: two nodes may share one. Used by the driver (to deal) and by every rank (to know).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Membership", "Place", "deal_ranks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a worker process runs.

    Args:
        node: id of the node, unique in the cluster.
        host: name of the machine, for people.
        address: IP address at which the other ranks reach this one.
        pid: process id on that machine.
        gpus: ids of the accelerators lent to this worker, in order; empty on CPU. None: nobody lends, it takes what
            there is.
    """

    node: str
    host: str
    address: str
    pid: int
    gpus: tuple[str, ...] | None = ()

    def __str__(self) -> str:
        return f"pid {self.pid} on node {self.node[:12]} ({self.host})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """What one worker is in one generation; the words are those of torch.distributed."""

    generation: int
    rank: int
    world_size: int
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0
    node_gpus: tuple[str, ...] = ()
    """Ids of the accelerators lent to all members on this node, in order; empty on CPU."""


def deal_ranks(places: Mapping[int, Place], generation: int) -> dict[int, Membership]:
    """Give every worker its rank, ordered by (node, GPU id, worker).

    The node of the lowest worker id comes first, so that the order does not depend on random node ids.

    Args:
        places: worker id → where it runs; one entry for every member.
        generation: number of the membership that is formed.

    Returns:
        worker id → its membership; ranks are 0 … len(places) - 1.

    Example:
        >>> here = Place(node="n", host="h", address="127.0.0.1", pid=1)
        >>> deal_ranks({4: here}, generation=0)[4].rank
        0
    """
    nodes: dict[str, list[int]] = {}
    for worker in sorted(places):
        nodes.setdefault(places[worker].node, []).append(worker)
    dealt: dict[int, Membership] = {}
    for node_rank, members in enumerate(nodes.values()):
        members.sort(key=lambda worker: (_gpu_order(places[worker].gpus or ()), worker))
        lent = {gpu for worker in members for gpu in places[worker].gpus or ()}
        gpus = tuple(sorted(lent, key=lambda gpu: _gpu_order((gpu,))))
        for local_rank, worker in enumerate(members):
            dealt[worker] = Membership(
                generation=generation,
                rank=len(dealt),
                world_size=len(places),
                local_rank=local_rank,
                local_world_size=len(members),
                node_rank=node_rank,
                node_gpus=gpus,
            )
    return dealt


def _gpu_order(gpus: tuple[str, ...]) -> tuple[int, str]:
    """Numbers by value ("10" after "9"), then names (MIG and UUID ids) by text."""
    first = gpus[0] if gpus else ""
    return (int(first), "") if first.isdigit() else (1 << 30, first)
