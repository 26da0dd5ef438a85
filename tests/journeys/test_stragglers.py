"""A rank that is slower than the others is told, once, with how much; nothing is done about it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import ClusterEvents, Orchestrator
from orchestrator.cluster_events import StragglerDetected
from orchestrator.journal import read_journal
from tests.process_ranks import ProcessGroup
from workers import Engine, Events, Program, Worker

WORK = 0.005  # seconds that a step takes on every rank
SLOW = 0.05  # on the slow one


def build(worker: Worker) -> Program:
    model = worker.prepare(torch.nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rank = worker.rank

    def step(engine: Engine, batch: torch.Tensor) -> None:
        threading.Event().wait(SLOW if rank == worker.config["slow"] else WORK)  # what it does takes so long
        optimizer.zero_grad()
        worker.backward(model(batch).square().mean())
        optimizer.step()

    data = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    return Program(
        engines={"trainer": Engine(step)},
        data={"trainer": worker.loader(data, global_batch_size=4)},
        state={"model": model, "optimizer": optimizer},
    )


def test_the_slow_rank_is_told_once_with_its_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.training.RayGroup", ProcessGroup)
    monkeypatch.setattr(ProcessGroup, "made", [])
    told: list[StragglerDetected] = []
    orchestrator = Orchestrator(build, run="slow", workers=3, config={"slow": 1}, storage=tmp_path)
    orchestrator.on(ClusterEvents.STRAGGLER_DETECTED)(lambda run, straggler: told.append(straggler))

    @orchestrator.on(Events.ITERATION_COMPLETED)
    def enough(run: Any) -> None:
        if told or run.state.iteration >= 1000:
            run.terminate("seen enough")

    orchestrator.run(max_epochs=20)
    assert [one.rank for one in told] == [1]
    assert all(one.ratio >= 2.0 and one.seconds > one.others for one in told)
    events = [line["event"] for line in read_journal(tmp_path / "slow" / "journal.jsonl")]
    assert events.count("STRAGGLER_DETECTED") == len(told)
    assert "WORKER_LOST" not in events
