"""Random number generators of one rank: seed them, take their state, give it back. Python's, NumPy's and torch's.

Every rank builds its model from the job's seed, so that all begin equal; then each gets a stream of its own, so that
dropout differs between ranks.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["capture_rng", "restore_rng", "seed_rng"]

_RANK_STREAM = 1 << 20  # distance of the ranks' streams: more than any world size


def seed_rng(seed: int, rank: int | None = None) -> None:
    """Seed all generators.

    Args:
        seed: the job's seed.
        rank: None for the stream that all ranks share while they build; else the rank's own stream.
    """
    stream = seed if rank is None else seed * _RANK_STREAM + rank + 1
    random.seed(stream)
    np.random.seed([stream >> (32 * word) & 0xFFFFFFFF for word in range(3)])  # all of it: NumPy takes 32-bit words
    torch.manual_seed(stream % (1 << 63))  # seeds the accelerators as well


def capture_rng(device: torch.device) -> dict[str, Any]:
    """The state of all generators as plain values and tensors (readable with `weights_only=True`)."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            position,
            has_gauss,
            cached,
        ],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng(state: Mapping[str, Any], device: torch.device) -> None:
    """Take up what `capture_rng` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
