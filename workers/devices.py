"""What a rank computes on: the accelerator that was lent to it, among all those of its node, else the CPU.

Ray lends each worker some accelerators, and hides all others. Ranks of one node see each other's, so that tensors go
from one to the other directly; each uses its own, by number. Decided here, purely; done once, before torch looks for
devices. Called by `building.py` and, for a worker that is made by hand, by `worker.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

__all__ = ["VARIABLES", "Sight", "accelerator", "choose", "sight_of"]

VARIABLES = {
    "CUDA_VISIBLE_DEVICES": "",
    "HIP_VISIBLE_DEVICES": "",
    "ROCR_VISIBLE_DEVICES": "",
    "ONEAPI_DEVICE_SELECTOR": "level_zero:",
}
"""What the libraries of NVIDIA, AMD and Intel read: ids with commas between, behind a prefix."""
_UNMANAGED = "mps"  # Apple's, of which a machine has one and Ray knows nothing


class Sight(NamedTuple):
    """Which accelerators a process sees, and which is its own.

    Args:
        environment: variables to be set before torch looks for devices.
        number: of its own among those that it sees.
    """

    environment: Mapping[str, str]
    number: int


def sight_of(environment: Mapping[str, str], own: Sequence[str], on_node: Sequence[str]) -> Sight:
    """What a rank is to see.

    Args:
        environment: of the process, in which Ray has named what it lent.
        own: ids of the accelerators that were lent to this rank.
        on_node: those of all ranks of its node, in order.

    Example:
        >>> sight_of({"CUDA_VISIBLE_DEVICES": "2"}, own=["2"], on_node=["0", "2", "3"])
        Sight(environment={'CUDA_VISIBLE_DEVICES': '0,2,3'}, number=1)
        >>> sight_of({}, own=["2"], on_node=["2"])
        Sight(environment={}, number=2)
    """
    seen: list[str] | None = None
    changed = {}
    for name, prefix in VARIABLES.items():
        listed = _listed(environment.get(name), prefix)
        if listed and own and own[0] in listed:
            seen = list(on_node) if set(listed) <= set(on_node) else listed
            changed[name] = prefix + ",".join(seen)
    if seen is not None:
        return Sight(changed, seen.index(own[0]))
    return Sight({}, int(own[0]) if own and own[0].isdigit() else 0)  # nothing is hidden, so ids are numbers


def choose(kind: str | None, lent: Sequence[str] | None, index: int = 0) -> torch.device:
    """The device of a rank.

    Args:
        kind: of the accelerator that there is: cuda (NVIDIA and AMD), xpu, mps …; None: there is none.
        lent: ids of those that were lent to it; None: nobody lends, so it takes what there is.
        index: number of its own among those that it sees.

    Example:
        >>> choose("cuda", ["3"], 1), choose("cuda", []), choose("mps", []), choose(None, None)
        (device(type='cuda', index=1), device(type='cpu'), device(type='mps', index=0), device(type='cpu'))
    """
    if kind is None or (lent is not None and not lent and kind != _UNMANAGED):
        return torch.device("cpu")
    return torch.device(kind, 0 if kind == _UNMANAGED else index)


def accelerator() -> str | None:
    """The kind of accelerator that this process sees; None: none."""
    if not torch.accelerator.is_available():
        return None
    device = torch.accelerator.current_accelerator()
    return None if device is None else device.type


def _listed(value: str | None, prefix: str) -> list[str]:
    """The ids in a variable; none if it selects in another way."""
    if not value or not value.startswith(prefix):
        return []
    return value[len(prefix) :].split(",")
