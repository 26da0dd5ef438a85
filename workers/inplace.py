"""What of a state entry is copied, and how the copy gets back into the living thing, whose tensors stay where they are.

Modules and optimizers are written into in place: an optimizer goes on to hold its model's parameters, a compiled model
its addresses. What has a way of its own to take up a state is given a copy of it. Called by
`snapshot.py`, for gradients by `gradients.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from workers.errors import ProgramError

__all__ = ["InPlace", "Kind", "Switches", "buffers_of", "living", "put_back_switches", "switches_of"]

Kind = Literal["module", "optimizer", "gradients", "other"]
"""How an entry is copied and put back; an optimizer's gradients are one for themselves."""
Switches = list[tuple[list[bool], list[bool]]]

_VALUES = (bool, int, float, complex, str, bytes, type(None), torch.Tensor)


def living(entry: Any) -> tuple[Kind, Any]:
    """The state of an entry, made of the living tensors: what a snapshot copies.

    Of a module its parameters and all its buffers, by name, and what `state_dict()` gives if that holds more. Of an
    optimizer what it keeps per parameter, and its groups without the parameters; of one that keeps a state of its own
    kind, and of all else, what `state_dict()` gives.
    """
    if isinstance(entry, nn.Module):
        tensors = {**dict(entry.named_parameters()), **buffers_of(entry)}
        known = {id(tensor) for tensor in tensors.values()}
        more = any(id(value) not in known for value in entry.state_dict(keep_vars=True).values())
        return "module", {"tensors": tensors, "more": entry.state_dict() if more else None}
    if isinstance(entry, Optimizer) and _is_torchs_own(entry):
        state = {
            "parameters": [[entry.state.get(p) for p in group["params"]] for group in entry.param_groups],
            "other": {key: value for key, value in entry.state.items() if not isinstance(key, torch.Tensor)},
            "groups": [
                {name: value for name, value in group.items() if name != "params"} for group in entry.param_groups
            ],
        }
        if _is_plain(state):
            return "optimizer", state
    return "other", entry.state_dict()


def buffers_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers of a module by name, each once; those that no state_dict holds too."""
    return dict(module.named_buffers())


def switches_of(modules: Iterable[nn.Module]) -> Switches:
    """Of each model: which of its modules are in training mode, and which of its parameters need gradients."""
    return [
        ([part.training for part in parts], [parameter.requires_grad for parameter in _parameters_of(parts)])
        for parts in map(_parts_of, modules)
    ]


def put_back_switches(modules: Iterable[nn.Module], saved: Switches) -> None:
    """Turn them as they were."""
    for parts, (training, trained) in zip(map(_parts_of, modules), saved, strict=True):
        for part, mode in zip(parts, training, strict=True):
            part.training = mode
        for parameter, needs in zip(_parameters_of(parts), trained, strict=True):
            parameter.requires_grad_(needs)


class InPlace:
    """One restore: writes copies into living tensors.

    What was one tensor in two places when it was copied is one again; what was two, and is one by now, becomes two.

    Args:
        fresh: gives a tensor that may be kept, for a copy that may not.
    """

    def __init__(self, fresh: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._fresh = fresh
        self._written: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # id of a copy → it, and where it went
        self._taken: set[int] = set()  # addresses that hold a copy already

    @torch.no_grad()
    def module(self, name: str, module: nn.Module, saved: Mapping[str, torch.Tensor]) -> None:
        """Parameters and buffers.

        Args:
            name: of the entry, for the error.
            module: the living one.
            saved: copies of its tensors, by name; only to be read.

        Raises:
            ProgramError: it has other parameters than the one that was copied.
        """
        parameters, buffers = dict(module.named_parameters()), buffers_of(module)
        for path, parameter in parameters.items():
            copy = saved.get(path)
            if copy is None or copy.shape != parameter.shape:
                received = "none" if copy is None else f"one of {tuple(copy.shape)}"
                raise ProgramError(
                    f"state[{name!r}]: expected the parameter {path!r} of shape {tuple(parameter.shape)} in the "
                    f"snapshot, received {received}; build the same model on every rank, and change no shapes later"
                )
            self._write(parameter, copy)
        for path in {**buffers, **saved}.keys() - parameters.keys():
            owner, _, leaf = path.rpartition(".")
            copy = saved.get(path)
            module.get_submodule(owner)._buffers[leaf] = None if copy is None else self.into(buffers.get(path), copy)

    @torch.no_grad()
    def optimizer(self, name: str, optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
        """What an optimizer keeps; groups that were added since are gone.

        Args:
            name: of the entry, for the error.
            optimizer: the living one.
            saved: what `living` gave, with copies, in containers that may be kept.

        Raises:
            ProgramError: it has other groups than the one that was copied.
        """
        groups, kept = optimizer.param_groups, saved["parameters"]
        state: dict[Any, Any] = optimizer.state
        for group in groups[len(kept) :]:
            for parameter in group["params"]:
                state.pop(parameter, None)
        del groups[len(kept) :]
        sizes, received = [len(group["params"]) for group in groups], [len(states) for states in kept]
        if sizes != received:
            raise ProgramError(
                f"state[{name!r}]: expected groups of {sizes} parameters in the snapshot, received {received}; build "
                "the same optimizer on every rank"
            )
        for group, states, others in zip(groups, kept, saved["groups"], strict=True):
            for parameter, wanted in zip(group["params"], states, strict=True):
                if wanted is None:
                    state.pop(parameter, None)  # it was copied before this parameter's first step
                else:
                    state[parameter] = self._merged(state.get(parameter), wanted)
            parameters = group["params"]
            self._merged(group, others)
            group["params"] = parameters
        for key in [key for key in state if not isinstance(key, torch.Tensor) and key not in saved["other"]]:
            del state[key]
        for key, wanted in saved["other"].items():
            state[key] = self._merged(state.get(key), wanted)

    def into(self, there: object, copy: torch.Tensor) -> torch.Tensor:
        """The tensor that holds a copy from now on: the one that is there, if it fits and holds no other."""
        if id(copy) in self._written:
            return self._written[id(copy)][1]
        if isinstance(there, torch.Tensor) and (there.shape, there.dtype) == (copy.shape, copy.dtype):  # noqa: SIM102
            if there.data_ptr() not in self._taken:
                return self._write(there, copy)
        fresh = self._fresh(copy)
        self._written[id(copy)] = copy, fresh
        return fresh

    def _merged(self, there: Any, wanted: Any) -> Any:
        """What is wanted, in the containers and tensors that are there as far as they fit."""
        if isinstance(wanted, torch.Tensor):
            return self.into(there, wanted)
        same = type(there) is type(wanted)
        if isinstance(wanted, dict):
            before, target = (dict(there), there) if same else ({}, wanted)
            merged = {key: self._merged(before.get(key), value) for key, value in wanted.items()}
            target.clear()
            target.update(merged)
            return target
        if isinstance(wanted, list):
            olds, target = (list(there), there) if same else ([], wanted)
            olds += [None] * (len(wanted) - len(olds))
            target[:] = [self._merged(old, value) for old, value in zip(olds, wanted, strict=False)]
            return target
        if isinstance(wanted, tuple):
            return tuple(self._merged(None, value) for value in wanted)
        return wanted

    def _write(self, there: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
        there.copy_(copy)
        self._written[id(copy)] = copy, there
        self._taken.add(there.data_ptr())
        return there


def _parts_of(module: nn.Module) -> list[nn.Module]:
    return list(module.modules())


def _parameters_of(parts: list[nn.Module]) -> list[nn.Parameter]:
    """The parameters of some modules; those that are shared several times."""
    return [parameter for part in parts for parameter in part._parameters.values() if parameter is not None]


def _is_torchs_own(optimizer: Optimizer) -> bool:
    """Whether an optimizer keeps its state as all of torch's do: in `state` and `param_groups`."""
    kind = type(optimizer)
    return kind.state_dict is Optimizer.state_dict and kind.load_state_dict is Optimizer.load_state_dict


def _is_plain(value: object) -> bool:
    """Whether there is nothing but tensors, plain values, and containers of them."""
    if type(value) in _VALUES or isinstance(value, np.generic):
        return True
    if type(value) is dict:
        return all(map(_is_plain, value.values()))
    return type(value) in (list, tuple) and all(map(_is_plain, value))  # type: ignore[call-overload]
