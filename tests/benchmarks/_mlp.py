"""What the benchmarks of recovery train, the same on every side: a perceptron with BatchNorm, Dropout and Adam.

Parameters and Adam's moments are 7 MB; a step on 64 samples takes about 10 ms on one thread, the all-reduce between
two ranks included. The batch is drawn in the step: no side reads data, so none has to find its place in it again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

FEATURES, HIDDEN, CLASSES = 256, 640, 10
BATCH = 64  # samples of one rank


def network() -> nn.Module:
    """The model, the same on every rank."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(FEATURES, HIDDEN),
        nn.BatchNorm1d(HIDDEN),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(HIDDEN, HIDDEN),
        nn.BatchNorm1d(HIDDEN),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(HIDDEN, CLASSES),
    )


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer."""
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def loss_of(model: nn.Module) -> torch.Tensor:
    """The loss on a batch that is drawn here."""
    x, y = torch.randn(BATCH, FEATURES), torch.randint(0, CLASSES, (BATCH,))
    return nn.functional.cross_entropy(model(x), y)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A peer's step."""
    loss = loss_of(model)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer, iteration: int) -> dict[str, Any]:
    """What a peer's checkpoint holds; `model` is the plain module."""
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration}


def load(state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Take the state of a checkpoint; returns the iteration at which it was saved."""
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["iteration"])
