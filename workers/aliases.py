"""Which tensors of a state lie in the memory of others of them: views, wherever they stand.

Found by addresses alone, so only tensors that are alive at the same time are compared. Used by `copies.py` and
`shards.py`, so that what shared memory shares it again when it has been put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

__all__ = ["Key", "key_of", "lying_in", "tensors_of"]

PLAIN = (torch.Tensor, torch.nn.Parameter)  # other classes may have no memory, or several
Key = tuple[int, torch.dtype, tuple[int, ...], tuple[int, ...], torch.device]
"""What tells two tensors of one state apart: address, dtype, shape, stride, device."""


class _Span(NamedTuple):
    device: str
    begin: int
    end: int


def key_of(tensor: torch.Tensor) -> Key | None:
    """What is equal for two names of one tensor; None for one that has no address, such as an empty one."""
    if type(tensor) not in PLAIN or tensor.layout != torch.strided or tensor.is_meta or not tensor.numel():
        return None
    if tensor.is_conj() or tensor.is_neg() or tensor.is_quantized or tensor.is_nested:
        return None
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device


def lying_in(tensors: Sequence[torch.Tensor], whole: Callable[[torch.Tensor], bool]) -> list[int | None]:
    """For each tensor, the number of the one in whose memory it lies; None if it lies in no other's.

    Args:
        tensors: as they are at this moment.
        whole: whether a tensor's numbers fill the memory between its first and its last one, in an order that a copy
            of it will keep: only in such a one others can be found again.

    Example:
        >>> table = torch.zeros(4, 3)
        >>> lying_in([table[1], table, torch.zeros(3)], torch.Tensor.is_contiguous)
        [1, None, None]
    """
    spans = {number: span for number, tensor in enumerate(tensors) if (span := _span_of(tensor)) is not None}
    wholes = {number: whole(tensors[number]) for number in spans}
    found: list[int | None] = [None] * len(tensors)
    holder: int | None = None

    def order(number: int) -> tuple[str, int, int, bool, int]:
        span = spans[number]
        return span.device, span.begin, -span.end, not wholes[number], number

    for number in sorted(spans, key=order):
        span, known = spans[number], None if holder is None else spans[holder]
        if known is not None and span.device == known.device and span.end <= known.end:
            found[number] = holder
        elif wholes[number]:
            holder = number
    return found


def tensors_of(value: object, path: str, depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a nested state with their paths: names with dots between.

    Args:
        value: the state, or a part of it.
        path: where it is.
        depth: of containers in containers; what is deeper is left out.
    """
    if isinstance(value, torch.Tensor):
        yield path, value
    elif not depth:
        return
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_of(item, f"{path}.{key}" if path else str(key), depth - 1)
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from tensors_of(item, f"{path}.{index}", depth - 1)


def _span_of(tensor: torch.Tensor) -> _Span | None:
    """The addresses between which a tensor lies."""
    key = key_of(tensor)
    if key is None:
        return None
    begin, _, shape, stride, device = key
    numbers = 1 + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
    return _Span(str(device), begin, begin + numbers * tensor.element_size())
