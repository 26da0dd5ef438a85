"""A small regression in one process, whose engine the tests of handlers train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from workers import Engine, Program, Worker

__all__ = ["Regression", "regression"]


@dataclass
class Regression:
    """A model, its optimizer, and an engine that trains it; `program` if a worker has them."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    trainer: Engine
    evaluator: Engine
    data: Any
    program: Program | None = None

    @property
    def state(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer}

    @property
    def numbers(self) -> list[float]:
        """All parameters, bit by bit."""
        return [number for p in self.model.parameters() for number in p.detach().flatten().tolist()]

    def train(self, epochs: int = 1) -> Regression:
        self.trainer.run(self.data, max_epochs=epochs)
        return self


def regression(*, worker: Worker | None = None, lr: float = 0.05) -> Regression:
    """48 points on a plane, in batches of 8; a loss that falls. With a worker: as a program, over its loader."""
    torch.manual_seed(0)
    x = torch.randn(48, 4)
    points = torch.utils.data.TensorDataset(x, x @ torch.tensor([[1.0], [-2.0], [3.0], [0.5]]))
    model: nn.Module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))
    model = model if worker is None else worker.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)

    def step(engine: Engine, batch: Any) -> dict[str, torch.Tensor]:
        model.train()
        loss = ((model(batch[0]) - batch[1]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach()}

    def evaluate(engine: Engine, batch: Any) -> torch.Tensor:
        model.eval()
        with torch.no_grad():
            return model(batch[0])

    trainer, evaluator = Engine(step), Engine(evaluate)
    made = Regression(model, optimizer, trainer, evaluator, None)
    if worker is None:
        made.data = list(torch.utils.data.DataLoader(points, batch_size=8))
        return made
    made.data = worker.loader(points, global_batch_size=8, shuffle=True)
    made.program = worker.program = Program(
        engines={"trainer": trainer, "evaluator": evaluator}, data={"trainer": made.data}, state=made.state
    )
    for engine in (trainer, evaluator):
        engine.worker = worker
    return made
