"""What the state of an optimizer belongs to: its kind, and its parameters in their order; and its settings on a rank.

torch puts the state of an optimizer back by position, and takes that of any other optimizer: what would fail at the
next step, or be wrong in silence, is refused here. Called by `checkpointing.py` and `saving.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from workers.errors import ProgramError
from workers.program import Program

__all__ = ["check_optimizer", "parameters_of", "settings_of"]

Parameters = Sequence[Sequence[Any]]
"""Name (None for one of no module in the state) and shape of each parameter, in the optimizer's order."""
SHORT = 60  # characters of a setting that are told as they are


def parameters_of(program: Program) -> dict[str, list[list[Any]]]:
    """The parameters of each optimizer in the state: what a checkpoint says of them, in plain values.

    Args:
        program: of this rank.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> state = {"model": model, "sgd": torch.optim.SGD(model.parameters())}
        >>> parameters_of(Program(engines={}, state=state))
        {'sgd': [['model.weight', [1, 2]], ['model.bias', [1]]]}
    """
    state: dict[str, object] = dict(program.state)
    names = {
        id(parameter): f"{entry}.{name}"
        for entry, module in state.items()
        if isinstance(module, torch.nn.Module)
        for name, parameter in module.named_parameters()
    }
    return {
        entry: [
            [names.get(id(parameter)), list(parameter.shape)]
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
        for entry, optimizer in state.items()
        if isinstance(optimizer, Optimizer)
    }


def check_optimizer(
    name: str, optimizer: Optimizer, state: Mapping[str, Any], then: Parameters | None, now: Parameters
) -> None:
    """See that a state is one of this kind of optimizer, over the same parameters in the same order.

    Args:
        name: of the entry.
        optimizer: that shall take it up.
        state: of a checkpoint.
        then: its parameters when it was saved; None if nobody wrote them down.
        now: its parameters.

    Raises:
        ProgramError: it is none; says what differs.
    """
    where, mend = f"checkpoint: state {name!r}", "build it as it was when that was saved, or start afresh"
    for group, saved in zip(optimizer.param_groups, state.get("param_groups", ()), strict=False):
        lacking = sorted(optimizer.defaults.keys() - saved.keys())
        others = sorted(saved.keys() - group.keys())
        if lacking and others:  # either alone is another version of torch, or a setting of the user's
            raise ProgramError(
                f"{where}: expected the state of {_article(type(optimizer).__name__)} (with {', '.join(lacking)}), "
                f"received that of another optimizer (with {', '.join(others)}); {mend}"
            )
    if then is None:
        return
    moved = sorted(str(one[0]) for one in then) == sorted(str(one[0]) for one in now)
    for number, (before, here) in enumerate(zip(then, now, strict=False)):
        renamed = moved and before[0] != here[0]
        if list(before[1]) != list(here[1]) or renamed:
            raise ProgramError(
                f"{where}: expected its parameter {number} to be {_tell(before)}, as it was saved, received "
                f"{_tell(here)}; give it the parameters in the same order, or start afresh"
            )


def settings_of(program: Program) -> dict[str, dict[str, str]]:
    """What is set in the optimizers and schedulers of the state on this rank, beside tensors of parameters.

    Args:
        program: of this rank.

    Returns:
        entry → setting → its value in all parameter groups, as text; a digest of a long one.
    """
    found: dict[str, dict[str, str]] = {}
    state: dict[str, object] = dict(program.state)
    for name, entry in state.items():
        if isinstance(entry, Optimizer):
            keys = sorted({key for group in entry.param_groups for key in group if key != "params"}, key=str)
            settings = {str(key): [group.get(key) for group in entry.param_groups] for key in keys}
        elif isinstance(entry, LRScheduler):
            settings = {str(key): value for key, value in entry.state_dict().items()}
        else:
            continue
        found[name] = {key: text for key, value in settings.items() if (text := _text(value)) is not None}
    return found


def _text(value: object) -> str | None:
    """A value as text; None for one that no text tells from another, such as a function."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, list | tuple):
        if len(value) == 1:
            return _text(value[0])
        parts = [_text(item) for item in value]
        text = None if None in parts else f"[{', '.join(map(str, parts))}]"
    elif value is None or isinstance(value, bool | int | float | str):
        text = repr(value)
    else:
        return None
    return text if text is None or len(text) <= SHORT else hashlib.sha256(text.encode()).hexdigest()[:12]


def _tell(parameter: Sequence[Any]) -> str:
    name, shape = parameter
    return f"{name or 'one'} of shape {list(shape)}"


def _article(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"
