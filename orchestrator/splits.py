"""Ray data sets of a run, split into one part for each rank; their parts travel with the order to build.

Knows data sets only by their `streaming_split`: what is read, where and when, is Ray Data's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.settings import pickled
from workers.rank import Membership

__all__ = ["Splits"]


class Splits:
    """The parts of all data sets.

    Args:
        datasets: by name, anything with `streaming_split`.
        world_size: ranks that train.
    """

    def __init__(self, datasets: Mapping[str, Any], world_size: int) -> None:
        self._datasets = datasets
        self._world_size = world_size
        self._parts: dict[str, list[Any]] = {}  # held: what deals them out lives as long as somebody has a part

    def of(self, membership: Membership) -> dict[str, bytes]:
        """The parts of one rank, pickled; a spare has the names, and nothing under them.

        The first call splits, so it comes when the run's workers are up.

        Raises:
            SpecError: a part can't be pickled.
        """
        if not self._parts:
            self._parts = {
                name: list(dataset.streaming_split(self._world_size, equal=True))
                for name, dataset in self._datasets.items()
            }
        if membership.rank >= self._world_size:
            return dict.fromkeys(self._parts, b"")
        return {
            name: pickled(parts[membership.rank], f"orchestrator.dataset({name!r})")
            for name, parts in self._parts.items()
        }

    def close(self) -> None:
        """Let go of the parts."""
        self._parts.clear()
