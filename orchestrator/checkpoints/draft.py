"""A manifest before there are files: where the run is, and which versions take part.

Written when a save begins; what the ranks know better is put in by `saving.py`, the files by `registry.py`.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from typing import Any

from orchestrator.checkpoints.manifest import Manifest
from workers.state import State
from workers.versions import installed

__all__ = ["manifest_of", "versions"]


def manifest_of(run_id: str, world_size: int, state: State, driver: Mapping[str, Any]) -> Manifest:
    """The manifest of a checkpoint at the driver's present state, without files.

    Args:
        run_id: of the run.
        world_size: ranks that are to write it.
        state: the trainer's, over all ranks; of its metrics the numbers are noted.
        driver: states of the driver's handlers, which JSON can hold.
    """
    return Manifest(
        run=run_id,
        epoch=state.epoch,
        iteration=state.iteration,
        epoch_length=state.epoch_length,
        world_size=world_size,
        time=time.time(),
        metrics={name: value for name, value in state.metrics.items() if isinstance(value, int | float)},
        driver=driver,
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Versions of what takes part, without importing any of it."""
    return {"python": platform.python_version(), **installed("rankfire", "torch", "ray")}
