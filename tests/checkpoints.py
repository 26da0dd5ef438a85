"""Real checkpoints for tests, made as ranks and driver make them, but in one thread and without a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from orchestrator.checkpoints.manifest import Manifest
from orchestrator.checkpoints.plan import GlobalPlan
from orchestrator.checkpoints.registry import Committed, Registry, Staging
from workers.parcels import Receipt
from workers.shards import Shards, Written
from workers.storage import Storage

__all__ = ["FILES", "committed", "equal", "manifest", "staged", "state_at", "written"]

FILES = [
    *("data/.metadata", "data/__0_0.distcp", "data/__1_0.distcp", "index.json"),
    *("ranks/rank-0000.pt", "ranks/rank-0001.pt", "shared.pt"),
]
"""What is in a checkpoint of `committed`, beside its manifest."""


def manifest(step: int = 5, **given: Any) -> Manifest:
    """A manifest without files."""
    fields = {
        "run": "r", "epoch": 1, "iteration": step, "epoch_length": None, "world_size": 2, "time": 0.0, "metrics": {},
    }  # fmt: skip
    return Manifest(**(fields | given))


def state_at(step: int) -> dict[str, Any]:
    """The shared state of `committed`: tensors and plain values that tell the step."""
    weight = torch.arange(6.0).reshape(2, 3) + step
    return {"model": {"weight": weight, "bias": torch.full((5,), float(step))}, "optimizer": {"steps": step}}


def written(
    storage: Storage, shards: Sequence[Shards], spread: Sequence[str] = ()
) -> tuple[dict[int, Written], list[Receipt]]:
    """All files but the manifest: what each rank wrote, and the receipts of the index."""
    plan = GlobalPlan({one.rank: one.plan() for one in shards}, spread)
    found = {one.rank: one.freeze(plan.part(one.rank), {}).write(storage) for one in shards}
    return found, plan.write_index(storage, {rank: part.results for rank, part in found.items()})


def staged(registry: Registry, step: int) -> tuple[Staging, list[Receipt]]:
    """All that a commit needs, for a checkpoint of two ranks that share out the model."""
    staging = registry.open(step)
    shards = [Shards(state_at(step), {"rank": rank, "step": step}, rank) for rank in (0, 1)]
    parts, index = written(staging.storage, shards, ["model"])
    return staging, [*index, *(receipt for part in parts.values() for receipt in part.receipts)]


def committed(registry: Registry, step: int, **given: Mapping[str, Any]) -> Committed:
    """A committed checkpoint of two ranks; `given` goes into its manifest."""
    staging, receipts = staged(registry, step)
    return registry.commit(staging, manifest(step, **given), receipts)


def equal(a: Any, b: Any) -> bool:
    """Whether two nested states are the same, bit by bit and type by type."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and bool(a == b)
