"""What a training step expects of its arguments, and of what the user's loss and count of tokens give.

Called by `steps.py`, so that a slip is told in the user's words and not in torch's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch.amp.grad_scaler import GradScaler

from workers.errors import ProgramError

__all__ = ["check_arguments", "checked_counts", "checked_dtype", "checked_loss"]


def check_arguments(accumulate: int, clip: float | None, scaler: object) -> None:
    """See that the numbers and the scaler of a training step can be used.

    Raises:
        ProgramError: one can't.
    """
    if type(accumulate) is not int or accumulate < 1:
        raise ProgramError(
            f"accumulate: expected a whole number from 1 on, received {accumulate!r}; it is in how many pieces a batch "
            "goes through the model"
        )
    if clip is not None and (isinstance(clip, bool) or not isinstance(clip, int | float) or not clip > 0):
        raise ProgramError(
            f"clip: expected the largest norm that gradients may have, a number above 0, received {clip!r}; leave it "
            "out to clip nothing"
        )
    if scaler is not None and not isinstance(scaler, GradScaler):
        raise ProgramError(
            f"scaler: expected a torch.amp.GradScaler, received {type(scaler).__name__}; make one with "
            "torch.amp.GradScaler(worker.device.type), and put it into the program's state"
        )


def checked_dtype(dtype: torch.dtype | None, scaler: GradScaler | None) -> torch.dtype | None:
    """The type in which autocast computes, if that can be: float16 needs a scaler.

    Raises:
        ProgramError: there is none for float16.
    """
    if dtype is torch.float16 and scaler is None:
        raise ProgramError(
            "amp: expected a scaler for float16, received none, so that small gradients would become 0; give "
            "scaler=torch.amp.GradScaler(worker.device.type), or write amp='bf16'"
        )
    return dtype


def checked_loss(loss: object) -> torch.Tensor:
    """The loss, if it is one number that gradients come from.

    Raises:
        ProgramError: it is not.
    """
    if isinstance(loss, torch.Tensor) and loss.numel() == 1 and loss.requires_grad:
        return loss
    received, mend = f"{loss!r:.80} ({type(loss).__name__})", "return the tensor that is to become small"
    if isinstance(loss, torch.Tensor) and loss.numel() != 1:
        received, mend = f"a tensor of shape {tuple(loss.shape)}", "take its mean()"
    elif isinstance(loss, torch.Tensor):
        received = "one without gradients"
        mend = "compute it from the prediction as it is, without detach() or item(), and leave some parameters trained"
    raise ProgramError(f"loss: expected a function that gives a tensor of one number, received {received}; {mend}")


def checked_counts(told: Iterable[torch.Tensor | int]) -> list[float]:
    """How many tokens each piece of a batch has, as numbers.

    Raises:
        ProgramError: one is below 0, infinite, or not a number.
    """
    counts = [float(count) for count in told]
    for count in counts:
        if not 0.0 <= count < math.inf:
            raise ProgramError(
                f"tokens: expected how many tokens a batch has, a number of at least 0, received {count!r}; count what "
                "the loss is a mean over"
            )
    return counts
