"""Training from Ray Data on a real cluster: every row once an epoch, over all ranks together."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import ray.data

from orchestrator import Orchestrator
from workers import Engine, Events, Program, Worker

pytestmark = pytest.mark.usefixtures("ray_cluster")
ROWS, EPOCHS = 64, 2


def build(worker: Worker) -> Program:
    """Notes the rows of every epoch."""
    seen: dict[int, list[int]] = {}

    def step(engine: Engine, batch: dict[str, Any]) -> None:
        seen.setdefault(engine.state.epoch, []).extend(batch["id"].tolist())

    trainer = Engine(step)
    trainer.state.seen = seen
    return Program(
        engines={"trainer": trainer},
        data={"trainer": worker.loader(worker.dataset("numbers"), global_batch_size=8)},
    )


def rows_of(worker: Worker) -> tuple[dict[int, list[int]], int, int]:
    state = worker.program.engines["trainer"].state  # type: ignore[union-attr]
    return state.seen, state.iteration, worker.samples


def test_two_ranks_see_every_row_of_a_ray_data_set_once_an_epoch(tmp_path: Path) -> None:
    orchestrator, told = Orchestrator(build, run="data", workers=2, storage=tmp_path), []
    orchestrator.dataset("numbers", ray.data.range(ROWS, override_num_blocks=4))
    orchestrator.on(Events.COMPLETED)(lambda run: told.extend(run.call(rows_of)))
    result = orchestrator.run(max_epochs=EPOCHS)
    assert (result.status, result.state.iteration) == ("completed", EPOCHS * ROWS // 8)
    for epoch in range(1, EPOCHS + 1):
        shares = [seen[epoch] for seen, _, _ in told]
        assert sorted(chain(*shares)) == list(range(ROWS))
        assert [len(share) for share in shares] == [ROWS // 2] * 2
    assert [samples for _, _, samples in told] == [EPOCHS * ROWS // 2] * 2
