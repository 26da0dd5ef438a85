"""Batches and predictions, however they are nested: to a device, in pieces for gradients that are accumulated, joined.

A batch is split along its first dimension. Used by `steps.py`. How much each piece counts is decided there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from workers.errors import ProgramError

__all__ = ["detached", "floats_in", "joined", "samples_in", "split", "to_device"]


def samples_in(batch: object) -> int:
    """Samples in a batch: the length of the tensors in it; 1 if it has none.

    Raises:
        ProgramError: its tensors differ in length.

    Example:
        >>> samples_in((torch.zeros(5, 3), {"y": torch.zeros(5)}))
        5
    """
    lengths = sorted({len(tensor) for tensor in _tensors_in(batch)})
    if len(lengths) > 1:
        raise ProgramError(
            f"accumulate: expected tensors with one sample in each row, received lengths {lengths} in one batch; give "
            "prepare_batch= a function that brings them to one length, or split the batch in a step of your own"
        )
    return lengths[0] if lengths else 1


def split(batch: Any, pieces: int) -> list[tuple[Any, int]]:
    """Split a batch into a number of pieces, as equal as can be, each with its weight: the number of its samples.

    There are always that many pieces, so that ranks with fewer samples call their models as often as the others: where
    there are fewer samples than pieces, the last one stands in, and counts 0.

    Args:
        batch: tensors, and tuples, lists and dictionaries of them; a list of as many things as there are samples is
            split like a tensor, and what is neither goes into every piece.
        pieces: how many.

    Example:
        >>> [(piece.tolist(), samples) for piece, samples in split(torch.arange(3), 2)]
        [([0, 1], 2), ([2], 1)]
        >>> [(piece.tolist(), samples) for piece, samples in split(torch.arange(1), 2)]
        [([0], 1), ([0], 0)]
    """
    if pieces == 1:
        return [(batch, 1)]
    samples = samples_in(batch)
    found = []
    for piece in range(pieces):
        begin, end = _share(samples, pieces, piece)
        rows = slice(begin, end) if begin < end else slice(samples - 1, samples)
        found.append((_rows(batch, rows, samples), end - begin))
    return found


def to_device(batch: Any, device: torch.device, *, non_blocking: bool = True) -> Any:
    """The tensors of a batch on a device, in the containers that they came in."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=non_blocking)
    if isinstance(batch, Mapping):
        return {key: to_device(item, device, non_blocking=non_blocking) for key, item in batch.items()}
    if isinstance(batch, tuple | list):
        items = [to_device(item, device, non_blocking=non_blocking) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return batch


def floats_in(prediction: object) -> list[torch.Tensor]:
    """The tensors of a prediction that gradients come through."""
    if isinstance(prediction, torch.Tensor):
        return [prediction] if prediction.requires_grad else []
    if isinstance(prediction, Mapping):
        prediction = list(prediction.values())
    if isinstance(prediction, tuple | list):
        return [tensor for part in prediction for tensor in floats_in(part)]
    return []


def detached(prediction: Any) -> Any:
    """A prediction without what its gradients would need."""
    if isinstance(prediction, torch.Tensor):
        return prediction.detach()
    if isinstance(prediction, Mapping):
        return {key: detached(item) for key, item in prediction.items()}
    if isinstance(prediction, tuple | list):
        return [detached(item) for item in prediction]
    return prediction


def joined(pieces: list[Any]) -> Any:
    """The predictions of a batch's pieces as that of the whole batch."""
    first = pieces[0]
    if len(pieces) == 1:
        return first
    if isinstance(first, torch.Tensor):
        return torch.cat(pieces) if first.dim() else torch.stack(pieces)
    if isinstance(first, Mapping):
        return {key: joined([piece[key] for piece in pieces]) for key in first}
    if isinstance(first, tuple | list):
        return [joined(list(parts)) for parts in zip(*pieces, strict=True)]
    return pieces


def _share(samples: int, pieces: int, piece: int) -> tuple[int, int]:
    """The rows of one piece; the first ones are the larger ones."""
    size, more = divmod(samples, pieces)
    begin = piece * size + min(piece, more)
    return begin, begin + size + (piece < more)


def _tensors_in(batch: object) -> list[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        return [batch] if batch.dim() else []
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, tuple | list):
        return [tensor for item in batch for tensor in _tensors_in(item)]
    return []


def _rows(batch: Any, rows: slice, samples: int) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch[rows] if batch.dim() else batch
    if isinstance(batch, Mapping):
        return {key: _rows(item, rows, samples) for key, item in batch.items()}
    if isinstance(batch, list) and len(batch) == samples and not _tensors_in(batch):
        return batch[rows]
    if isinstance(batch, tuple | list):
        items = [_rows(item, rows, samples) for item in batch]
        named = hasattr(batch, "_fields")
        return type(batch)(*items) if named else type(batch)(items)
    return batch
