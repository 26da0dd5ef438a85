"""What a rank had measured when it was lost and nobody took its place: its metrics of the epoch, its samples.

Read by the driver, where a world shrinks: it merges these with what the other ranks bring. See `rewinding.py`, which
told it.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass

from workers.copies import unpacked
from workers.events import Events
from workers.parcels import TRAINER, MetricPack

__all__ = ["LeftBehind", "left_behind"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftBehind:
    """What is left of one rank.

    Args:
        epoch: in which it trained.
        packs: its metrics of that epoch.
        samples: that it had consumed in training.
    """

    epoch: int
    packs: Mapping[str, MetricPack]
    samples: int


def left_behind(told: bytes) -> LeftBehind:
    """Read the part of a snapshot that a rank told the driver.

    Args:
        told: `SnapshotTaken.own`.
    """
    _, own = pickle.loads(told)
    found = unpacked(own)
    trainer = found["engines"][TRAINER]
    packs = {}
    for name, state in trainer["attached"].items():
        parts = state.values() if isinstance(state, Mapping) else ()
        if parts and all(isinstance(part, Mapping) and part.keys() == {"states", "updates"} for part in parts):
            pack = MetricPack(parts={path: (part["states"], part["updates"]) for path, part in state.items()})
            if any(updates for _, updates in pack.parts.values()):
                packs[name] = pack
    return LeftBehind(epoch=trainer["counters"].get(Events.EPOCH_STARTED.key, 0), packs=packs, samples=found["samples"])
