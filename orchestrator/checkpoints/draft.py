"""A manifest before there are files: where the run is, what its handlers keep, which versions take part.

Written when a save begins; what the ranks know better is put in by `saving.py`, the files by `registry.py`.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from typing import Any

from orchestrator.checkpoints.manifest import Manifest
from orchestrator.errors import SpecError, explain
from workers.state import State
from workers.versions import installed

__all__ = ["manifest_of", "states_of", "versions"]


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


def states_of(handlers: Mapping[str, Any]) -> dict[str, Any]:
    """The states of the driver's handlers, which go into the manifest.

    Args:
        handlers: name → handler with a `state_dict()`.

    Raises:
        SpecError: one of them is not what JSON can hold; names the handler.
    """
    states = {name: handler.state_dict() for name, handler in handlers.items()}
    for name, state in states.items():
        try:
            json.dumps(state)
            _check_keys(state)
        except (TypeError, ValueError) as error:
            raise SpecError(
                explain(
                    f"orchestrator.checkpoint: state_dict() of handler {name}",
                    expected="numbers, texts, lists and dictionaries of them by texts, which JSON can hold",
                    received=f"something else: {error}",
                    mend="leave it out, or give its parts",
                )
            ) from error
    return states


def _check_keys(state: object) -> None:
    """JSON makes texts of all keys, so others would not come back as they were."""
    if isinstance(state, Mapping):
        if strange := [key for key in state if not isinstance(key, str)]:
            raise TypeError(f"key {strange[0]!r} is no text")
        for value in state.values():
            _check_keys(value)
    elif isinstance(state, list | tuple):
        for value in state:
            _check_keys(value)


def versions() -> dict[str, str]:
    """Versions of what takes part, without importing any of it."""
    return {"python": platform.python_version(), **installed("rankfire", "torch", "ray")}
