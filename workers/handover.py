"""Copies from one rank to others, as they lie in memory: over the default process group, without a collective.

The donor sends to all newcomers at once; other ranks take no part. What the copies are, and when they change hands, is
`snapshot.py`'s affair.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import torch
import torch.distributed as dist

from workers.copies import Copies

__all__ = ["receive_copies", "send_copies"]

PIECE = 64 << 20  # bytes that are under way at a time, so that each has the group's timeout for itself


def send_copies(copies: Copies, beside: bytes, to: Sequence[int]) -> None:
    """Send.

    Args:
        copies: what to send.
        beside: what goes with it.
        to: ranks that receive.

    Raises:
        RuntimeError: one of them is gone.
    """
    header = pickle.dumps((copies.skeletons, copies.laid, beside), protocol=pickle.HIGHEST_PROTOCOL)
    _send(torch.tensor([len(header)]), to)
    _send(torch.frombuffer(bytearray(header), dtype=torch.uint8), to)
    for piece in torch.split(copies.memory[: copies.size], PIECE):
        _send(piece, to)


def receive_copies(copies: Copies, source: int) -> bytes:
    """Receive what `send_copies` sends; gives what went with it.

    Args:
        copies: to be filled; what was in it is gone.
        source: rank of the donor.

    Raises:
        RuntimeError: it is gone.
    """
    length = torch.zeros(1, dtype=torch.int64)
    dist.recv(length, source)
    header = torch.empty(int(length), dtype=torch.uint8)
    dist.recv(header, source)
    copies.skeletons, laid, beside = pickle.loads(header.numpy().tobytes())
    copies.lay(laid, pinned=any(place.device.type == "cuda" for place in laid))
    for piece in torch.split(copies.memory[: copies.size], PIECE):
        dist.recv(piece, source)
    return bytes(beside)


def _send(tensor: torch.Tensor, to: Sequence[int]) -> None:
    for work in [dist.isend(tensor, rank) for rank in to]:
        assert work is not None, "a donor is a member of the group"
        work.wait()
