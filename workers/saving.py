"""One rank's part in a save: say what there is, copy its share while all wait, have it written while they go on.

Made by `serving.py` at the first save; what is in a checkpoint is said in `checkpointing.py`, how in `shards.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch.distributed.checkpoint.planner import SavePlan

from workers.apart import spread_entries
from workers.checkpointing import cursor_of, shards_of
from workers.failpoints import failpoint
from workers.optimizers import settings_of
from workers.parcels import Failure, Planned, Writing
from workers.program import Program
from workers.shards import Shards
from workers.worker import Worker
from workers.writer import ShardWriter

__all__ = ["RankSaver"]

ENDING = 2.0  # seconds for a share that is still being written when the rank leaves


class RankSaver:
    """The saves of one rank.

    Args:
        worker: this rank.
        program: what is saved.
        told: called, on the writing thread, with `url`, `written` and `failure` of a share.
    """

    def __init__(self, worker: Worker, program: Program, told: Callable[..., None]) -> None:
        self._told = told
        self._worker = worker
        self._program = program
        self._shards: Shards | None = None  # between the plan and the copy
        self._buffers: dict[str, torch.Tensor] = {}  # the copies of the last save, to be used again
        self._writer = ShardWriter(lambda url, written, failure: told(url=url, written=written, failure=failure))

    def plan(self) -> Planned:
        """What this rank could write."""
        self._shards = shards_of(self._worker, self._program)
        cursor, data = cursor_of(self._program)
        planned = Planned(
            plan=self._shards.plan(),
            spread=spread_entries(self._worker, self._program),
            state=self._shards.sizes,
            cursor=cursor,
            data=data,
            settings=settings_of(self._program),
        )
        failpoint("save.planned", self._worker.rank)
        return planned

    @property
    def writing(self) -> Writing | None:
        """How far it is with what is being written; from any thread."""
        return self._writer.writing

    def freeze(self, plan: SavePlan, url: str, given_up: Collection[str] = ()) -> None:
        """Copy what the driver gave this rank to write, and begin to write it.

        Args:
            plan: this rank's part of the global plan.
            url: the staging folder.
            given_up: folders of saves for which nobody waits. As long as the storage holds on to a share for one of
                these, nothing else is written: the copies are in use, and another thread would be held as well.
        """
        assert self._shards is not None, "a share is planned before it is copied"
        if self._writer.held_by(*given_up):
            self._shards = None
            text = f"the storage still holds on to {_tell(self.writing)} of a save that was given up"
            self._told(url=url, written=None, failure=Failure(type_name="TimeoutError", text=text, traceback=""))
            return
        self._writer.join()  # the driver lets one save be in flight: this is only for its thread to end
        shards, self._shards = self._shards, None
        frozen = shards.freeze(plan, self._buffers)
        failpoint("save.frozen", self._worker.rank)
        self._writer.start(frozen, url)

    def end(self) -> None:
        """The rank leaves."""
        self._writer.join(ENDING)


def _tell(writing: Writing | None) -> str:
    return "a file" if writing is None else writing.path
