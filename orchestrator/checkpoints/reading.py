"""Entries of a checkpoint's state, of which every byte of the checkpoint was verified before anybody sees them.

Tensors are hashed while they are read; what was read is given out only when all of the checkpoint is known to be as it
was written. A run that resumes needs none of this: its driver verifies while the ranks start.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from orchestrator.checkpoints.registry import Committed
from orchestrator.checkpoints.verify import damage
from orchestrator.errors import CheckpointError
from workers.parcels import Receipt
from workers.shards import load_hashed

__all__ = ["read_verified"]


def read_verified(checkpoint: Committed, entries: Callable[[str], bool] = lambda _: True) -> dict[str, Any]:
    """Read entries of the state, as their `load_state_dict` wants them.

    Args:
        checkpoint: which one.
        entries: which entries.

    Returns:
        name → state; tensors on the CPU.

    Raises:
        CheckpointError: a byte is not what was written, or can't be read.

    Example:
        >>> read_verified(checkpoint, {"model"}.__contains__)["model"]  # doctest: +SKIP
    """
    state, failure, read = None, None, list[Receipt]()
    try:
        state, read = load_hashed(checkpoint.storage, entries)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, pickle.UnpicklingError) as error:
        failure = error  # what is wrong with the bytes says more, if anything is
    wrong = damage(checkpoint.storage, checkpoint.manifest, read)
    if wrong is not None:
        raise CheckpointError.at(checkpoint.url, f"{wrong}; restore it, or take another checkpoint") from failure
    if failure is not None:
        raise CheckpointError.at(checkpoint.url, f"can't be read: {failure}") from failure
    assert state is not None, "it was read, or it failed"
    return state
