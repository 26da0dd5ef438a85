"""Whether numbers are finite: one answer for a whole nest of them, and, when one is not, which.

The answer for tensors is made on their device, and nobody waits for it here: whoever asks reads it. Numbers, and single
elements on the CPU, are looked at where they are. Used by `handlers/terminate_on_nan.py`.
"""

from __future__ import annotations

import cmath
import numbers
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch

__all__ = ["Leaf", "has_nonfinite", "name_nonfinite", "numbers_in"]

Leaf = torch.Tensor | complex
"""What may be infinite or NaN: a tensor of a floating or complex type, or a number."""

SMALL = 32  # elements of a tensor that are looked at as they are; of a larger one the least and the greatest


def numbers_in(value: object, path: str = "") -> Iterator[tuple[str, Leaf]]:
    """Everything in a nest of mappings, tuples and lists that may be infinite or NaN, with its path.

    Args:
        value: a number, a tensor, an array of NumPy, or a nest of these; whatever else is in it is left out.
        path: of the value itself.

    Example:
        >>> list(numbers_in({"loss": 0.5, "parts": [1, 2.0], "name": "a"}))
        [('loss', 0.5), ('parts/1', 2.0)]
    """
    return _walk(value, path, set())


def has_nonfinite(leaves: Iterable[Leaf]) -> bool | torch.Tensor:
    """Whether any number is infinite or NaN.

    Args:
        leaves: what `numbers_in` gives, without the paths.

    Returns:
        A bool, or one on a device, for which nobody has waited yet.

    Example:
        >>> bool(has_nonfinite([1.0, torch.tensor([0.0, float("inf")])]))
        True
    """
    groups: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            plain = _plain(leaf)
            if plain.numel() != 1 or plain.device.type != "cpu":
                groups.setdefault((plain.device, plain.dtype), []).append(_extremes(plain))
                continue
            leaf = plain.item()
        if not cmath.isfinite(leaf):
            return True
    verdicts = [torch.isfinite(torch.cat(group)).all().logical_not() for group in groups.values()]
    if len(verdicts) < 2:
        return verdicts[0] if verdicts else False
    return torch.stack([verdict.to(verdicts[0].device) for verdict in verdicts]).any()


def name_nonfinite(named: Iterable[tuple[str, Leaf]]) -> str:
    """Say which numbers are infinite or NaN, the first in full; empty if none is. Waits for the devices.

    Example:
        >>> name_nonfinite([("loss", float("nan")), ("parts/0", 1.0), ("parts/1", float("inf"))])
        'loss is nan, and 1 more'
    """
    found = [(name, leaf) for name, leaf in named if bool(has_nonfinite([leaf]))]
    if not found:
        return ""
    name, leaf = found[0]
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    if not isinstance(leaf, torch.Tensor) or leaf.numel() == 1:
        value = leaf.item() if isinstance(leaf, torch.Tensor) else leaf
        return f"{name} is {value}{more}"
    plain = _plain(leaf)
    return f"{name} has {int((~torch.isfinite(plain)).sum())} of {plain.numel()} values that are nan or infinite{more}"


def _walk(value: object, path: str, seen: set[int]) -> Iterator[tuple[str, Leaf]]:
    """As `numbers_in`; a container is looked at once, since a nest may contain itself."""
    if isinstance(value, torch.Tensor):
        if (value.is_floating_point() or value.is_complex()) and value.numel():
            yield path, value.detach()
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "fc" and value.size:
            yield path, torch.from_numpy(np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("=")))
    elif isinstance(value, numbers.Number):
        if not isinstance(
            value, numbers.Rational
        ):  # whole numbers and fractions are always finite, whatever their size
            yield path, complex(value) if isinstance(value, complex) else float(value)  # type: ignore[arg-type]
    elif isinstance(value, Mapping | tuple | list) and id(value) not in seen:
        seen.add(id(value))
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _walk(item, f"{path}/{key}" if path else str(key), seen)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers in a dense tensor of a real type that can be compared."""
    if tensor.is_sparse:
        tensor = tensor._values()
    elif tensor.layout != torch.strided:
        tensor = tensor.values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor if tensor.itemsize > 1 else tensor.float()  # eight bits are enough to hold, not to compare


def _extremes(tensor: torch.Tensor) -> torch.Tensor:
    """Few numbers that are all finite just if those of the tensor are: NaN is both its least and its greatest."""
    return tensor.reshape(-1) if tensor.numel() <= SMALL else torch.stack(torch.aminmax(tensor))
