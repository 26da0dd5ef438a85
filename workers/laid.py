"""Where copies of tensors lie in one block of memory: one after the other, and a view of another one within that one's.

Values and pure functions; `copies.py` has the memory.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from workers.aliases import lying_in

__all__ = ["Laid", "laid_for", "nested"]

_ALIGNMENT = 64  # bytes: a line of the processor's cache, and enough for every dtype


class Laid(NamedTuple):
    """Where the copy of one tensor lies, and what it is a copy of; a view of another one lies within that one's."""

    offset: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    device: torch.device


def laid_for(tensors: list[torch.Tensor]) -> tuple[Laid, ...]:
    """Where copies of tensors lie: one after the other, each in the order of its dimensions; views where they lay."""
    laid: dict[int, Laid] = {}
    end, holders = 0, lying_in(tensors, _whole)
    for number, tensor in enumerate(tensors):
        if holders[number] is None:
            size, shape, stride = tensor.numel() * tensor.element_size(), tuple(tensor.shape), tensor.stride()
            if not _whole(tensor):
                stride = torch.empty(shape, device="meta").stride()
            laid[number] = Laid(end, size, tensor.dtype, shape, stride, tensor.device)
            end += math.ceil(size / _ALIGNMENT) * _ALIGNMENT
    for number, holder in enumerate(holders):
        if holder is not None:
            tensor, shape, stride = tensors[number], tuple(tensors[number].shape), tensors[number].stride()
            numbers = 1 + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
            offset = laid[holder].offset + tensor.data_ptr() - tensors[holder].data_ptr()
            size = numbers * tensor.element_size()
            laid[number] = Laid(offset, size, tensor.dtype, shape, stride, tensor.device)
    return tuple(laid[number] for number in range(len(tensors)))


def nested(laid: tuple[Laid, ...]) -> dict[int, int]:
    """Which copies lie in which other ones, by their numbers."""

    def order(number: int) -> tuple[int, int, bool, int]:
        place = laid[number]
        return place.offset, -place.size, not _dense(place.shape, place.stride), number

    holders: dict[int, int] = {}
    holder: int | None = None
    for number in sorted((number for number, place in enumerate(laid) if place.size), key=order):
        if holder is not None and laid[number].offset < laid[holder].offset + laid[holder].size:
            holders[number] = holder
        else:
            holder = number
    return holders


def _whole(tensor: torch.Tensor) -> bool:
    """Whether a copy of a tensor keeps its strides."""
    return tensor.is_contiguous() or _dense(tuple(tensor.shape), tensor.stride())


def _dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the elements lie side by side without gaps, in whatever order of dimensions."""
    expected = 1
    for step, length in sorted((step, length) for step, length in zip(stride, shape, strict=True) if length != 1):
        if step != expected:
            return False
        expected *= length
    return True
