"""Learn f(x) = 2x - x³ with a small network: 25 epochs of 1,000 iterations, evaluated every 5 epochs.

Run `python examples/quickstart.py` (about 20 seconds). One engine trains, another evaluates; no cluster needed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from workers import Engine, Events

BATCH = 32


class Samples:
    """Endless batches (x, f(x)), x uniform in [-2, 2). An engine that resumes tells them where with `seek`."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.position = 0

    def seek(self, iteration: int) -> None:
        self.position = iteration

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator()
        while True:
            generator.manual_seed(self.seed * 1_000_003 + self.position)
            self.position += 1
            x = torch.rand(BATCH, 1, generator=generator) * 4 - 2
            yield x, 2 * x - x**3


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))


def make_trainer(model: nn.Module) -> Engine:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def train_step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
        x, y = batch
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    trainer = Engine(train_step)
    trainer.attach("optimizer", optimizer)  # so that its state is saved with the trainer's
    return trainer


def make_evaluator(model: nn.Module) -> Engine:
    """Its `state.metrics["error"]` is the largest error over an evaluation."""

    @torch.no_grad()
    def eval_step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
        x, y = batch
        return (model(x) - y).abs().max().item()

    evaluator = Engine(eval_step)

    @evaluator.on(Events.STARTED)
    def reset(engine: Engine) -> None:
        engine.state.metrics["error"] = 0.0

    @evaluator.on(Events.ITERATION_COMPLETED)
    def keep_largest(engine: Engine) -> None:
        engine.state.metrics["error"] = max(engine.state.metrics["error"], engine.state.output)

    return evaluator


def main(epochs: int = 25, epoch_length: int = 1000) -> float:
    """Train, and give the largest error of the last evaluation."""
    model = make_model()
    trainer, evaluator = make_trainer(model), make_evaluator(model)

    @trainer.on(Events.EPOCH_COMPLETED(every=5))
    def evaluate(engine: Engine) -> None:
        evaluator.run(Samples(seed=1), epoch_length=50)
        print(f"epoch {engine.state.epoch:3d}: largest error {evaluator.state.metrics['error']:.4f}")

    trainer.run(Samples(seed=0), max_epochs=epochs, epoch_length=epoch_length)
    print(trainer.timers)
    return evaluator.state.metrics["error"]


if __name__ == "__main__":
    main()
