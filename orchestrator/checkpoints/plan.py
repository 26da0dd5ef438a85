"""The driver's half of a distributed save: one global plan out of the ranks' plans, and the index of what they wrote.

torch's own planner and writer do the work; what is replicated on all ranks is written once, by the lowest rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from orchestrator.checkpoints.manifest import FileEntry

__all__ = ["GlobalPlan"]


class GlobalPlan:
    """One save.

    Args:
        staging: the folder in which the ranks write.
        plans: each rank's own plan, rank → plan, for ranks 0 … W-1.
    """

    def __init__(self, staging: Path, plans: Mapping[int, Any]) -> None:
        self._data = staging / "data"
        self._writer = FileSystemWriter(self._data, single_file_per_rank=True)
        planner = DefaultSavePlanner(flatten_state_dict=False, dedup_save_to_lowest_rank=True)
        merged, self._metadata = planner.create_global_plan([plans[rank] for rank in sorted(plans)])
        self._plans = self._writer.prepare_global_plan(merged)

    def part(self, rank: int) -> Any:
        """What one rank is to write."""
        return self._plans[rank]

    def finish(self, results: Mapping[int, Any]) -> FileEntry:
        """Write the index of all ranks' tensors; returns its receipt."""
        self._writer.finish(self._metadata, [results[rank] for rank in sorted(results)])
        index = self._data / ".metadata"
        content = index.read_bytes()
        return FileEntry(path="data/.metadata", size=len(content), sha256=hashlib.sha256(content).hexdigest())
