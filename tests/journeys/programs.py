"""Small programs that the journeys run on ranks; they import torchmetrics only if they measure: ranks start faster."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import torch

from workers import Engine, EventEnum, Events, Number, Program, Worker, attach_metric


class Odd(EventEnum):
    """Events that only some ranks fire."""

    HERE = "here"
    THERE = "there"


def points(n: int = 50) -> torch.utils.data.TensorDataset:
    """A small regression: y is a fixed linear function of x."""
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return torch.utils.data.TensorDataset(x, x @ torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64))


def linear(worker: Worker) -> Program:
    """A linear model, its loss measured over the epoch, an evaluator; double precision, so that sums agree."""
    model = worker.prepare(torch.nn.Linear(4, 1, dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def train_step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        x, y = batch
        model.train()
        loss = ((model(x).squeeze(1) - y) ** 2).mean()
        optimizer.zero_grad()
        worker.backward(loss)
        optimizer.step()
        return {"loss": loss.detach()}

    @torch.no_grad()
    def eval_step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = batch
        model.eval()
        return model(x).squeeze(1), y

    trainer, evaluator = Engine(train_step), Engine(eval_step)
    if worker.config.get("metrics", False):
        from torchmetrics import MeanSquaredError

        attach_metric(trainer, "loss", "mean", output=lambda out: out["loss"])
        attach_metric(evaluator, "mse", MeanSquaredError())
    return Program(
        engines={"trainer": trainer, "evaluator": evaluator},
        data={
            "trainer": worker.loader(points(), global_batch_size=worker.config.get("batch", 8), shuffle=True),
            "evaluator": worker.loader(points(23), global_batch_size=8),
        },
        state={"model": model, "optimizer": optimizer},
    )


def raises_in_build(worker: Worker) -> Program:
    """Raises on one rank only."""
    if worker.rank == worker.config["rank"]:
        raise ValueError("no such colour: mauve")
    return linear(worker)


def returns_nothing(worker: Worker) -> None:
    """Is no program."""


def raises_in_step(worker: Worker) -> Program:
    """One rank raises at its fifth iteration, the others wait for it in their all-reduce."""
    program = linear(worker)
    trainer = program.engines["trainer"]
    step = trainer.process_function

    def broken(engine: Engine, batch: object) -> object:
        if engine.state.iteration == 5 and worker.rank == worker.config["rank"]:
            raise KeyError("column 'age'")
        return step(engine, batch)

    trainer.process_function = broken
    return program


def kills_itself(worker: Worker) -> Program:
    """One rank is killed in its third iteration."""
    program = linear(worker)

    def die(engine: Engine) -> None:
        if worker.rank == worker.config["rank"]:
            os.kill(os.getpid(), signal.SIGKILL)

    program.engines["trainer"].add_event_handler(Events.ITERATION_STARTED(once=3), die)
    return program


def goes_astray(worker: Worker) -> Program:
    """Each rank fires an event of its own: no roll call can be full."""
    program = linear(worker)

    def fire(engine: Engine) -> None:
        engine.fire_event(Odd.HERE if worker.rank == 0 else Odd.THERE)

    program.engines["trainer"].add_event_handler(Events.ITERATION_COMPLETED(once=2), fire)
    return program


def counts_tokens(worker: Worker) -> Program:
    """Puts plain numbers into the trainer's metrics, one of each kind."""
    program = linear(worker)

    def count(engine: Engine) -> None:
        rank = worker.rank + 1
        engine.state.metrics["mean"] = float(rank)
        engine.state.metrics["weighted"] = Number(value=rank, count=rank)
        for rule in ("sum", "min", "max"):
            engine.state.metrics[rule] = Number(value=rank, reduce=rule)

    program.engines["trainer"].add_event_handler(Events.EPOCH_COMPLETED, count)
    return program


def stops_listening(worker: Worker) -> Program:
    """From the tenth epoch on, rank 0 waits for ever in a step, which Ctrl-C once can not end."""
    program = linear(worker)

    def wait(engine: Engine) -> None:
        if worker.rank == 0:
            Path(worker.config["deaf"]).touch()
            threading.Event().wait()

    program.engines["trainer"].add_event_handler(Events.EPOCH_STARTED(once=10), wait)
    return program


def spoilt(worker: Worker) -> Program:
    """On some rank, at some iteration, a batch is NaN, a gradient infinite, or a bit of the model flipped.

    `worker.config`: `spoil` says which of "batch", "gradient" and "bit", `rank` and `at` where; `guard` attaches a
    handler of that name to the trainer here.
    """
    program = linear(worker)
    trainer, step, config = program.engines["trainer"], program.engines["trainer"].process_function, worker.config
    weight = program.state["model"].weight  # type: ignore[attr-defined]
    mine = worker.rank == config["rank"]

    def due(engine: Engine) -> bool:
        return mine and engine.state.iteration == config["at"]

    def train(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> object:
        if config["spoil"] == "batch" and due(engine):
            batch = (batch[0] * float("nan"), batch[1])
        return step(engine, batch)

    def flip(engine: Engine) -> None:
        if config["spoil"] == "bit" and due(engine):
            weight.data.view(torch.int64)[0, 2] ^= 1 << 20

    trainer.process_function = train
    trainer.add_event_handler(Events.ITERATION_COMPLETED, flip)
    if config["spoil"] == "gradient":
        weight.register_hook(lambda gradient: gradient / 0.0 if due(trainer) else gradient)
    if config.get("guard") == "TerminateOnNan":
        from workers import TerminateOnNan

        trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
    return program
