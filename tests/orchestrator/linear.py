"""A tiny program for whole runs in this process: one linear layer, 12 samples in batches of 4, dropout-like noise.

Its steps draw random numbers and its optimizer has a state, so that a resume that forgot either would end elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchmetrics import MeanMetric

from orchestrator import Orchestrator
from orchestrator.journal import read_journal
from workers import Engine, Events, Program, Worker, attach_metric

__all__ = ["build", "journal", "make", "parameters", "trained"]


def build(worker: Worker) -> Program:
    """The program; `worker.config["fail"]` names what shall raise."""
    fail = worker.config.get("fail")
    if fail == "build":
        raise OSError("no such data set")
    data = [(torch.randn(3), torch.randn(1)) for _ in range(12)]
    model = worker.prepare(nn.Linear(3, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    def step(engine: Engine, batch: Any) -> dict[str, torch.Tensor]:
        x, y = batch
        if fail == "step" and engine.state.iteration == 4:
            raise ValueError("wrong shape")
        loss = ((model(x + 0.1 * torch.randn_like(x)) - y) ** 2).mean()
        optimizer.zero_grad()
        worker.backward(loss)
        optimizer.step()
        return {"loss": loss.detach()}

    def evaluate(engine: Engine, batch: Any) -> dict[str, torch.Tensor]:
        x, y = batch
        if fail == "evaluator":
            raise RuntimeError("no labels")
        with torch.no_grad():
            return {"loss": ((model(x) - y) ** 2).mean(), "size": torch.tensor(float(len(x)))}

    trainer, evaluator = Engine(step), Engine(evaluate)
    attach_metric(trainer, "loss", MeanMetric(), output=lambda out: out["loss"])
    attach_metric(evaluator, "loss", MeanMetric(), output=lambda out: (out["loss"], out["size"]))
    return Program(
        engines={"trainer": trainer, "evaluator": evaluator},
        data={
            "trainer": worker.loader(data, global_batch_size=4, shuffle=True),
            "evaluator": worker.loader(data, global_batch_size=5),
        },
        state={"model": model, "optimizer": optimizer},
    )


def make(storage: Path | str, run: str = "linear", **given: Any) -> Orchestrator:
    """An orchestrator of the program in this process."""
    return Orchestrator(build, workers=0, run=run, storage=storage, **given)


def parameters(worker: Worker) -> list[list[float]]:
    """Bit by bit: for `run.call`."""
    assert worker.program is not None
    model: Any = worker.program.state["model"]
    return [parameter.detach().flatten().tolist() for parameter in model.parameters()]


def trained(orchestrator: Orchestrator, max_epochs: int = 3, **given: Any) -> list[list[float]]:
    """Train to the end; the final parameters."""
    found: list[list[list[float]]] = []
    orchestrator.listen(Events.COMPLETED, lambda run: found.append(run.call(parameters, rank=0)))
    orchestrator.run(max_epochs, **given)
    return found[0]


def journal(storage: Path, run: str = "linear") -> list[dict[str, Any]]:
    """The run's record; fails on a line that is no JSON."""
    lines = list(read_journal(storage / run / "journal.jsonl"))
    assert json.dumps(lines, allow_nan=False)
    return lines
