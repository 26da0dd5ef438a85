"""One save, as the driver leads it: plans from the ranks, a global plan, their files, the commit; or nothing at all."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from orchestrator.asking import Asking
from orchestrator.checkpoints.manifest import FileEntry, Manifest
from orchestrator.checkpoints.registry import Committed, Registry
from orchestrator.errors import CheckpointError, SpecError
from workers.messages import Answer
from workers.orders import PlanSave, WriteSave

__all__ = ["manifest_of", "save", "states_of", "versions"]


def save(asking: Asking, registry: Registry, manifest: Manifest) -> Committed:
    """Write and commit a checkpoint of the state at the open gate.

    Args:
        asking: how to reach the ranks, which wait at a gate.
        registry: where it goes.
        manifest: what it is, except for its files.

    Raises:
        CheckpointError: a rank could not write, or the commit failed; nothing of it is left.
    """
    from orchestrator.checkpoints.plan import GlobalPlan  # a second of imports, at the first save

    plans = asking.ask(lambda number, _: PlanSave(order=number))
    staging = registry.open(manifest.iteration)
    try:
        plan = GlobalPlan(staging, {rank: answer.value for rank, answer in plans.items()})
        answers = asking.ask(lambda number, rank: WriteSave(order=number, folder=str(staging), plan=plan.part(rank)))
        _check(staging.name, answers)
        written: dict[int, Any] = {rank: answer.value for rank, answer in answers.items()}
        index = plan.finish({rank: part.results for rank, part in written.items()})
        files = [
            FileEntry(path=receipt.path, size=receipt.size, sha256=receipt.sha256)
            for part in written.values()
            for receipt in part.receipts
        ]
        return registry.commit(staging, manifest, [*files, index])
    except OSError as error:
        registry.abandon(staging)
        raise CheckpointError.at(staging.name, f"can't be written: {error}") from error
    except BaseException:
        registry.abandon(staging)
        raise


def manifest_of(run_id: str, world_size: int, state: Any, driver: Mapping[str, Any]) -> Manifest:
    """The manifest of a checkpoint at the driver's present state, without files."""
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

    Raises:
        SpecError: one of them is not what JSON can hold; names the handler.
    """
    states = {name: handler.state_dict() for name, handler in handlers.items()}
    for name, state in states.items():
        try:
            json.dumps(state)
        except (TypeError, ValueError) as error:
            raise SpecError(
                f"orchestrator.checkpoint: state_dict() of handler {name}: expected numbers, texts, lists and "
                f"dictionaries of them, which JSON can hold, received something else: {error}"
            ) from error
    return states


def versions() -> dict[str, str]:
    """Versions of what takes part, without importing any of it."""
    found = {"python": platform.python_version()}
    for package in ("rankfire", "torch", "ray"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a source tree that was put on the path instead of installed
            found[package] = "not installed"
    return found


def _check(name: str, answers: Mapping[int, Answer]) -> None:
    failed = {rank: answer.failure for rank, answer in answers.items() if answer.failure is not None}
    if failed:
        told = "; ".join(f"rank {rank}: {failure}" for rank, failure in sorted(failed.items()))
        raise CheckpointError.at(name, f"could not be written: {told}")
