"""A nested state as plain containers and values: tensors taken out of it, and put back.

What is left is what `weights_only=True` reads again; all else is refused, with its path. Used by `shards.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
import torch

from workers.errors import ProgramError

__all__ = ["DEPTH", "TENSOR", "VIEW", "compact", "joined", "plain", "tensors_in"]

DEPTH = 100  # of containers in containers; what is much deeper, pickle gives up on
TENSOR = "__tensor__"  # marks, in the structure, where a tensor of data/ belongs
VIEW = "__view__"  # beside it: offset, shape and stride of a part of that tensor, in numbers
_SCALARS = (bool, int, float, str, bytes)
_BITS = 2000  # of an integer: what is much larger, weights_only=True can't read
_VERSIONS, _STATE = "__versions__", "__state__"  # mark a state dict that knows the versions of its modules
_MARKS = (TENSOR, VIEW, _VERSIONS, _STATE)


def plain(value: object, path: str, keep: Callable[[torch.Tensor, str], object]) -> object:
    """Copy nested containers.

    Args:
        value: the state, or a part of it.
        path: where it is, for errors: names with dots between.
        keep: gets each tensor and its path; what it returns stands in the tensor's place.

    Raises:
        ProgramError: there is something in it that `weights_only=True` could not read again; says where.
    """
    return _plain(value, path, keep, DEPTH)


def tensors_in(structure: object) -> list[str]:
    """Names of the tensors that belong into a structure, by its marks.

    Example:
        >>> tensors_in({"model": {"bias": {TENSOR: "model.bias"}}, "step": 3})
        ['model.bias']
    """
    if isinstance(structure, dict):
        if TENSOR in structure:
            return [structure[TENSOR]]
        return [name for item in structure.values() for name in tensors_in(item)]
    if isinstance(structure, list | tuple):
        return [name for item in structure for name in tensors_in(item)]
    return []


def joined(structure: object, tensors: Mapping[str, torch.Tensor]) -> object:
    """Put tensors in the places of their marks, and versions of modules to their state dicts.

    Marks of one name become one tensor, and marks of its parts views of it.
    """
    if isinstance(structure, dict):
        if TENSOR in structure:
            tensor, part = tensors[structure[TENSOR]], structure.get(VIEW)
            return tensor if part is None else tensor.as_strided(part[1], part[2], tensor.storage_offset() + part[0])
        if structure.keys() == {_VERSIONS, _STATE}:
            state = OrderedDict(cast("dict[str, object]", joined(structure[_STATE], tensors)))
            state._metadata = OrderedDict(structure[_VERSIONS])  # type: ignore[attr-defined]
            return state
        return {key: joined(item, tensors) for key, item in structure.items()}
    if isinstance(structure, list | tuple):
        items = [joined(item, tensors) for item in structure]
        return tuple(items) if isinstance(structure, tuple) else items
    return structure


def compact(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that brings no more along than itself."""
    whole = tensor.untyped_storage().nbytes()
    return tensor.clone() if whole > tensor.numel() * tensor.element_size() else tensor


def _plain(value: object, path: str, keep: Callable[[torch.Tensor, str], object], depth: int) -> object:
    if isinstance(value, torch.Tensor):
        return keep(_dense(value, path), path)
    if value is None or type(value) in _SCALARS:  # not their subclasses, which are pickled by name
        return _readable(value, path)
    if isinstance(value, Mapping | tuple | list) and not depth:
        raise _too_deep(path)
    if isinstance(value, Mapping):
        versions = getattr(value, "_metadata", None)  # which layout of its state each module has, as torch keeps it
        if versions:
            told = _plain(dict(versions), f"{path}._metadata", keep, depth - 1)
            return {_VERSIONS: told, _STATE: _plain(dict(value), path, keep, depth - 1)}
        return {
            _plain_key(key, path): _plain(item, f"{path}.{key}" if path else str(key), keep, depth - 1)
            for key, item in value.items()
        }
    if isinstance(value, tuple | list):
        items = [_plain(item, f"{path}.{index}", keep, depth - 1) for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    return _of_numpy(value, path)


def _of_numpy(value: object, path: str) -> object:
    if isinstance(value, np.generic):
        item = value.item()
        if type(item) in _SCALARS:
            return item
    if isinstance(value, np.ndarray):
        try:
            return torch.from_numpy(value.copy())
        except TypeError:  # texts, dates, objects: torch has no such numbers
            raise _refusal(value, path, f" of {value.dtype}") from None
    raise _refusal(value, path)


def _dense(tensor: torch.Tensor, path: str) -> torch.Tensor:
    """Only a tensor whose numbers lie side by side in memory can be written."""
    if tensor.is_meta:
        what, mend = "one on the device 'meta', which has no numbers", "give it some first, with to_empty(device=...)"
    elif tensor.is_quantized:
        what, mend = f"a quantized one ({tensor.dtype})", "give its int_repr() with scale and zero point"
    elif tensor.is_nested:
        what, mend = "a nested one", "give what it is made of, with unbind()"
    elif tensor.layout != torch.strided:
        what, mend = f"one with the layout {tensor.layout}", "give its to_dense(), or its indices and values"
    else:
        return tensor
    raise ProgramError(
        f"checkpoint: state {path!r}: expected dense tensors, received {what}; {mend}, or leave it out of state_dict()"
    )


def _too_deep(path: str) -> ProgramError:
    begin = ".".join(path.split(".")[:8])
    return ProgramError(
        f"checkpoint: state '{begin}…': expected containers in at most {DEPTH} others, received more, or one that "
        "holds itself; leave it out of state_dict(), or make it flatter"
    )


def _readable(value: object, path: str) -> object:
    """Two kinds of plain values can be written, and not be read again."""
    if value == b"":
        raise _refusal(value, path, " of no bytes")
    if isinstance(value, int) and value.bit_length() > _BITS:
        raise _refusal(value, path, f" of more than {_BITS} bits")
    return value


def _plain_key(key: object, path: str) -> object:
    if type(key) in _SCALARS and key not in _MARKS:  # a key like a mark would be taken for one
        return key
    raise _refusal(key, f"{path}, key {key!r}")


def _refusal(value: object, path: str, more: str = "") -> ProgramError:
    return ProgramError(
        f"checkpoint: state {path!r}: expected tensors, numbers, texts and containers of them, "
        f"received {type(value).__module__}.{type(value).__qualname__}{more}; leave it out of state_dict(), or give "
        "its parts"
    )
