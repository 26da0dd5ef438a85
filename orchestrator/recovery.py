"""Decisions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from workers.parcels import SnapshotLabel

__all__ = ["choose_snapshot"]


def choose_snapshot(
    held: Mapping[int, Sequence[SnapshotLabel]],
    own: Mapping[int, Collection[SnapshotLabel]],
    lost: Collection[int],
    wanted: SnapshotLabel | None = None,
) -> SnapshotLabel | None:
    """Newest common."""
    if not held:
        return None
    first = next(iter(held.values()))
    for label in reversed(first):
        if all(label in labels for labels in held.values()) and all(label in own[rank] for rank in lost):
            return label
    return None
