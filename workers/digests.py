"""A digest of tensors, made on their device: 64 bits that differ if any bit of any tensor does.

The bytes are read as whole numbers, so a digest does not depend on the order in which a device adds. Each tensor is
laid out as a table; the sums of its rows and columns, which are made as fast as memory is read, are mixed with their
places. Not cryptographic: it finds accidents, not forgeries. Used by `handlers/check_divergence.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

__all__ = ["digest_of"]

WHOLE = 256  # words of a tensor that are taken as they are; more become sums
CACHED = 64  # rows of a block, which a core's cache holds
WIDEST = 1024  # words of a row: wider ones are added up more slowly
_GOLDEN, _FIRST, _SECOND = (  # odd numbers of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom generators)
    number - (1 << 64) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


@torch.no_grad()
def digest_of(tensors: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Digest tensors, in their order.

    Args:
        tensors: of any shapes and types.
        device: where the answer shall be.

    Returns:
        One int64, for which nobody has waited yet.

    Example:
        >>> cpu = torch.device("cpu")
        >>> digest_of([torch.zeros(3)], cpu) == digest_of([torch.tensor([0.0, 0.0, -0.0])], cpu)
        tensor(False)
    """
    parts = [part.to(device) for tensor in tensors for part in _condensed(tensor)]
    if not parts:
        return torch.zeros((), dtype=torch.int64, device=device)
    words = torch.cat(parts)
    places = torch.arange(1, len(words) + 1, device=device)
    return _mix(words + places * _GOLDEN).sum()


def _condensed(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Few 64-bit words that stand for all bits of a tensor."""
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    flat = tensor.detach().reshape(-1)  # a view, or a copy if its elements are not in a row
    octets = (torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat).view(torch.uint8)
    if octets.storage_offset() % 8:
        octets = octets.clone()  # words can be read only where words begin
    whole = len(octets) // 8 * 8
    words, rest = octets[:whole].view(torch.int64), octets[whole:].to(torch.int64)
    if len(words) <= WHOLE:
        return [words, rest]
    columns = min(1 << (len(words).bit_length() // 2), WIDEST)
    rows = len(words) // columns
    table, beyond = words[: rows * columns].view(rows, columns), words[rows * columns :]
    return [*_sums(table), beyond, rest]


def _sums(table: torch.Tensor) -> list[torch.Tensor]:
    """The sums of all rows and of all columns; on a CPU block by block, so that memory is read once."""
    height = CACHED if table.device.type == "cpu" else len(table)
    blocks = (table[row : row + height] for row in range(0, len(table), height))
    rows, columns = zip(*((block.sum(1), block.sum(0)) for block in blocks), strict=True)
    return [*rows, torch.stack(columns).sum(0)]


def _mix(words: torch.Tensor) -> torch.Tensor:
    """Spread every bit of every word over all of it, so that changes in several words do not cancel out."""
    words = (words ^ (words >> 30)) * _FIRST
    words = (words ^ (words >> 27)) * _SECOND
    return words ^ (words >> 31)
