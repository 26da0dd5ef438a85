"""Events of your own: the step tells when it goes backward and when the optimizer steps.

Handlers look at gradients between the two, without the step knowing of them. Filters count the firings.
Run `python examples/quickstart_custom_events.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.quickstart import Samples, make_model
from workers import Engine, EventEnum, Events


class StepEvents(EventEnum):
    """What happens within one iteration."""

    BACKWARD_STARTED = "BACKWARD_STARTED"
    BACKWARD_COMPLETED = "BACKWARD_COMPLETED"
    OPTIM_STEP_STARTED = "OPTIM_STEP_STARTED"
    OPTIM_STEP_COMPLETED = "OPTIM_STEP_COMPLETED"


def main(epochs: int = 5, epoch_length: int = 200) -> list[float]:
    """Train, and give the gradient norms that a handler saw."""
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    norms: list[float] = []

    def step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
        x, y = batch
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        engine.fire_event(StepEvents.BACKWARD_STARTED)
        loss.backward()
        engine.fire_event(StepEvents.BACKWARD_COMPLETED)
        engine.fire_event(StepEvents.OPTIM_STEP_STARTED)
        optimizer.step()
        engine.fire_event(StepEvents.OPTIM_STEP_COMPLETED)
        return loss.item()

    trainer = Engine(step)

    @trainer.on(StepEvents.BACKWARD_COMPLETED)
    def clip() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)

    @trainer.on(StepEvents.OPTIM_STEP_STARTED(every=epoch_length))
    def look() -> None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())

    @trainer.on(Events.EPOCH_COMPLETED)
    def tell(engine: Engine) -> None:
        print(f"epoch {engine.state.epoch}: loss {engine.state.output:.4f}, gradient norm {norms[-1]:.4f}")

    trainer.run(Samples(seed=0), max_epochs=epochs, epoch_length=epoch_length)
    return norms


if __name__ == "__main__":
    main()
