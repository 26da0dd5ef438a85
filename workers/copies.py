"""Copies of nested state: a skeleton in bytes, and the tensors in one block of memory that is used again and again.

The skeleton is pickled, so containers keep their types and what was one object stays one. Used by `snapshot.py` to hold
a rank's state, and by `handover.py` to send it as it lies there; whose state it is, and where it goes back, they know.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import cloudpickle
import numpy as np
import torch

from workers.errors import ProgramError
from workers.laid import Laid, laid_for, nested

__all__ = ["Copies", "bytes_in", "packed", "unpacked"]

_PLAIN = (torch.Tensor, torch.nn.Parameter)  # other classes, and other layouts, pickle themselves


class Copies:
    """The copies of some nested states, by name.

    Example:
        >>> copies = Copies()
        >>> copies.take({"weights": {"bias": torch.ones(2)}})
        >>> copies.clones("weights")
        {'bias': tensor([1., 1.])}
    """

    def __init__(self) -> None:
        self.skeletons: dict[str, bytes] = {}
        self.laid: tuple[Laid, ...] = ()
        self.size = 0  # bytes of `memory` that are in use
        self.memory = torch.empty(0, dtype=torch.uint8)
        self._keys: list[tuple[object, ...]] = []  # what tells the tensors apart that were copied
        self._tensors: list[torch.Tensor] = []
        self._numbers: dict[int, int] = {}  # id of a copy → its number
        self._holders: dict[int, int] = {}  # number of a view → that of the copy in which it lies

    def take(self, states: Mapping[str, object]) -> None:
        """Copy; what was here before is gone. Waits for accelerators to hand over what is copied.

        Args:
            states: tensors in containers and other things; what is neither is copied by pickling.

        Raises:
            ProgramError: something can't be pickled; says in which state.
        """
        found = _Found()
        self.skeletons = {name: found.pickled(name, state) for name, state in states.items()}
        keys = list(found.keys)
        if keys != self._keys:  # else all is where it was the last time
            self.lay(laid_for(found.tensors), pinned=any(tensor.device.type == "cuda" for tensor in found.tensors))
            self._keys = keys
        if found.tensors:
            wholes = [number for number in range(len(found.tensors)) if number not in self._holders]
            into, of = [self._tensors[number] for number in wholes], [found.tensors[number] for number in wholes]
            with torch.no_grad():
                torch._foreach_copy_(into, of, non_blocking=True)
        if any(tensor.device.type != "cpu" for tensor in found.tensors):
            torch.accelerator.synchronize()  # the copies are on their way; training may change what they read

    def views(self, name: str) -> Any:
        """A state whose tensors are the copies: to be read, not to be kept. The same copy is the same object."""
        return _Unpickler(self.skeletons[name], self._tensors.__getitem__).load()

    def clones(self, name: str) -> Any:
        """A state that its receiver may keep and change: nothing of it lies in here. Tensors are where they were.

        What shared memory within it does so again.
        """
        met: set[int] = set()
        made: dict[int, torch.Tensor] = {}

        def meet(number: int) -> torch.Tensor:
            met.add(number)
            return self._tensors[number]

        def clone(number: int) -> torch.Tensor:
            if number not in made:
                holder = self._holders.get(number)
                if holder is None or holder not in met:
                    made[number] = self.fresh(self._tensors[number])
                else:
                    made[number] = self._within(clone(holder), number, holder)
            return made[number]

        _Unpickler(self.skeletons[name], meet).load()
        return _Unpickler(self.skeletons[name], clone).load()

    def fresh(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor for keeps: of a copy another one, on the device of what it is a copy of; any other is given back."""
        number = self._numbers.get(id(tensor))
        if number is None:
            return tensor
        device = self.laid[number].device
        return tensor.clone() if device.type == "cpu" else tensor.to(device)

    def lay(self, laid: tuple[Laid, ...], *, pinned: bool) -> None:
        """Make room.

        Args:
            laid: what shall lie where.
            pinned: page-locked, so that accelerators copy fast.
        """
        self._keys = []
        size = max((place.offset + place.size for place in laid), default=0)
        fits = size <= self.memory.numel() <= 2 * size and (not pinned or self.memory.is_pinned())
        if not fits:
            self._tensors, self._numbers = [], {}
            self.memory = torch.empty(0, dtype=torch.uint8)  # first: there is no room for two
            self.memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        if not fits or laid != self.laid:
            self._tensors = [self._at(place) for place in laid]
            self._numbers = {id(tensor): number for number, tensor in enumerate(self._tensors)}
        if laid != self.laid:
            self._holders = nested(laid)
        self.laid, self.size = laid, size

    def _within(self, whole: torch.Tensor, number: int, holder: int) -> torch.Tensor:
        """A view of another copy's clone, as its own copy is one of that copy."""
        place, before = self.laid[number], self.laid[holder].offset
        offset = (place.offset - before) // place.dtype.itemsize
        view = torch.empty(0, dtype=place.dtype, device=whole.device)
        return view.set_(whole.untyped_storage(), offset, place.shape, place.stride)

    def _at(self, place: Laid) -> torch.Tensor:
        part = self.memory[place.offset : place.offset + place.size].view(place.dtype)
        return part.as_strided(place.shape, place.stride)


def packed(value: object, name: str = "") -> bytes:
    """Pickle something small with its tensors, so that another process can unpack it.

    Raises:
        ProgramError: something can't be pickled; says in which state, `name`.
    """
    buffer = io.BytesIO()
    with _refusing(name):
        _Packer(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


def unpacked(content: bytes) -> Any:
    """What was packed; new every time, so that it may be kept and changed.

    Args:
        content: what `packed` gave, in this process or another one of the same run.

    Example:
        >>> unpacked(packed({"bias": torch.ones(2)}))
        {'bias': tensor([1., 1.])}
    """
    return pickle.loads(content)


def bytes_in(value: object) -> int:
    """Bytes of the tensors and arrays in a nested state.

    Example:
        >>> bytes_in({"weights": [torch.ones(2), np.ones(2)], "lr": 0.1})
        24
    """
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(bytes_in, value.values()))
    if isinstance(value, tuple | list):
        return sum(map(bytes_in, value))
    return 0


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Name the state that can't be pickled."""
    try:
        yield
    except (TypeError, AttributeError, ValueError, pickle.PicklingError) as error:
        raise ProgramError(
            f"snapshot: state {name!r}: expected what can be copied, tensors and plain values, received something that "
            f"can't be pickled ({error}); leave it out of state_dict()"
        ) from error


class _Found:
    """The tensors that were met while skeletons were pickled: each memory once."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self.keys: dict[tuple[object, ...], int] = {}

    def pickled(self, name: str, state: object) -> bytes:
        buffer = io.BytesIO()
        with _refusing(name):
            _Pickler(buffer, self.number).dump(state)
        return buffer.getvalue()

    def number(self, tensor: torch.Tensor) -> int:
        if tensor.is_conj() or tensor.is_neg():
            tensor = tensor.resolve_conj().resolve_neg()
        key = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device
        number = self.keys.setdefault(key, len(self.tensors))
        if number == len(self.tensors):
            self.tensors.append(tensor)  # kept until it is copied, so that nothing else comes to lie there
        return number


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Leaves tensors out: their place in the pickle is a number."""

    def __init__(self, file: io.BytesIO, index: Callable[[torch.Tensor], int]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._index = index

    def persistent_id(self, thing: object) -> int | None:
        if type(thing) in _PLAIN and thing.layout == torch.strided and not thing.is_quantized:  # type: ignore[attr-defined]
            return self._index(cast(torch.Tensor, thing))
        return None


class _Unpickler(pickle.Unpickler):
    """Puts tensors in again."""

    def __init__(self, content: bytes, tensor_of: Callable[[int], torch.Tensor]) -> None:
        super().__init__(io.BytesIO(content))
        self._tensor_of = tensor_of

    def persistent_load(self, pid: int) -> torch.Tensor:
        return self._tensor_of(pid)


class _Packer(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Tensors by their bytes: several times faster than torch's own way, and a view brings no more than itself."""

    def reducer_override(self, thing: Any) -> Any:
        if type(thing) in _PLAIN and thing.layout == torch.strided and not thing.is_quantized:
            flat = thing.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
            return _tensor, (raw, thing.dtype, tuple(thing.shape), str(thing.device))
        return super().reducer_override(thing)


def _tensor(raw: bytes, dtype: torch.dtype, shape: tuple[int, ...], device: str) -> torch.Tensor:
    if not raw:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype).reshape(shape).to(device)
