"""The driver's half of a distributed save: who writes what, and the index of what they wrote.

torch's own planner merges the plans. What is replicated on all ranks is written once: where it is known to be equal on
all of them, each writes a part of it; else the lowest rank writes it. Nothing here reads or writes a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import _StoragePrefix
from torch.distributed.checkpoint.planner import SavePlan

from workers.dcp import index_files, write_file
from workers.parcels import Receipt
from workers.storage import Storage

__all__ = ["GlobalPlan"]


class GlobalPlan:
    """One save.

    Args:
        plans: each rank's own plan, rank → plan, for ranks 0 … W-1.
        spread: entries of the state that are equal on all ranks, so that any rank may write any part.

    Example:
        >>> GlobalPlan({0: plan_of_rank_0, 1: plan_of_rank_1}, spread=("model",)).part(1)  # doctest: +SKIP
    """

    def __init__(self, plans: Mapping[int, SavePlan], spread: Sequence[str] = ()) -> None:
        planner = DefaultSavePlanner(flatten_state_dict=False)
        shared_out = _share_out([plans[rank] for rank in sorted(plans)], spread)
        merged, self._metadata = planner.create_global_plan(shared_out)
        self._plans = [replace(plan, storage_data=_StoragePrefix(f"__{rank}_")) for rank, plan in enumerate(merged)]

    def part(self, rank: int) -> SavePlan:
        """What one rank is to write."""
        return self._plans[rank]

    def write_index(self, storage: Storage, results: Mapping[int, Any]) -> list[Receipt]:
        """Write the index of all ranks' tensors: ours, and that of torch's tools.

        Args:
            storage: the staging folder.
            results: what torch's writer told on each rank.

        Raises:
            OSError: the storage refuses.
        """
        files = index_files(self._metadata, [results[rank] for rank in sorted(results)])
        return [write_file(storage, path, content) for path, content in files.items()]


def _share_out(plans: Sequence[SavePlan], spread: Sequence[str]) -> list[SavePlan]:
    """Leave every tensor in one plan only; the largest first, to the rank that has least to write so far."""
    owners: dict[Any, list[int]] = {}
    sizes: dict[Any, int] = {}
    for rank, plan in enumerate(plans):
        for item in plan.items:
            owners.setdefault(item.index, []).append(rank)
            sizes[item.index] = item.tensor_storage_size() or 1
    load = [0] * len(plans)
    chosen: dict[Any, int] = {}
    for index in sorted(owners, key=lambda index: -sizes[index]):  # stable: equal ones in the order of the plans
        ranks = owners[index]
        rank = min(ranks, key=load.__getitem__) if _belongs(index.fqn, spread) else ranks[0]
        chosen[index] = rank
        load[rank] += sizes[index]
    return [
        replace(plan, items=[item for item in plan.items if chosen[item.index] == rank])
        for rank, plan in enumerate(plans)
    ]


def _belongs(name: str, entries: Sequence[str]) -> bool:
    return any(name == entry or name.startswith(f"{entry}.") for entry in entries)
