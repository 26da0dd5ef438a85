"""The driver's side: averaged weights, what every epoch brought; a sample of text, written beside rank 0's model."""

import math

import torch

from examples.gpt.text import numbers_of, text_of
from workers import Events
from workers.handlers import EMA

BEGINNING = "The "
SAMPLE = 200  # characters


def attach(orchestrator) -> None:
    config = orchestrator.settings.config
    orchestrator.attach(EMA(decay=config["ema"]))  # on every rank; the evaluation takes the averages

    @orchestrator.on(Events.EPOCH_COMPLETED)  # on the driver, once, after the shared evaluation
    def tell(run):
        loss, validation = run.metrics["loss"], run.metrics["validation/loss"]
        print(
            f"epoch {run.state.epoch}: loss {loss:.3f}, validation {validation:.3f} "
            f"({validation / math.log(2):.2f} bits a character)"
        )

    sharded = config["strategy"] == "fsdp"  # then it takes all ranks to call the model
    orchestrator.on(Events.EPOCH_COMPLETED(every=5), rank="all" if sharded else 0)(write)


def write(engine):
    """Draw some text; from random numbers of its own, so that training does not notice."""
    worker = engine.worker
    model = worker.program.state["model"].eval()
    begin = numbers_of(BEGINNING).unsqueeze(0).to(worker.device)
    drawn = model.write_on(begin, SAMPLE, torch.Generator().manual_seed(engine.state.epoch))
    if worker.rank == 0:
        print(f"epoch {engine.state.epoch} writes: {text_of(drawn[0])}")
