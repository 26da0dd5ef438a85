"""The driver's side: who is ahead, told now and then by an event of the GAN's own; digits drawn by rank 0."""

import torch

from examples.gan.events import GanEvents
from examples.gan.program import NOISE
from workers import Events

SHADES = " .:-=+*#%@"


def attach(orchestrator) -> None:
    @orchestrator.on(GanEvents.GENERATOR_UPDATED(every=100))  # once, when all ranks have updated; nobody waits
    def tell(run):
        print(f"{run.state.iteration} updates of the generator")

    @orchestrator.on(Events.EPOCH_COMPLETED)
    def compare(run):
        losses = ", ".join(f"{name} {run.metrics[name]:.3f}" for name in ("discriminator", "generator"))
        print(f"epoch {run.state.epoch}: {losses}")

    orchestrator.on(Events.COMPLETED, rank=0)(draw)


@torch.no_grad()
def draw(engine):
    """Four digits side by side, in characters."""
    worker = engine.worker
    noise = torch.randn(4, NOISE, generator=torch.Generator().manual_seed(0)).to(worker.device)
    drawn = worker.program.state["generator"].eval()(noise).view(4, 8, 8).cpu()
    for row in range(8):
        print("   ".join("".join(SHADES[int(9 * pixel)] * 2 for pixel in image[row]) for image in drawn))
