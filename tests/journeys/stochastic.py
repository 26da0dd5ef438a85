"""A program in which everything that can drift is there: dropout, BatchNorm, momentum, a scheduler, augmentation.

Its final state tells, bit by bit, whether a resume forgot anything. The samples that each rank consumes are written
down by iteration, so that a test can see that each was consumed once.
"""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workers import Engine, Events, Program, Worker, attach_metric, sample_rng

SAMPLES = 90
BATCH = 12


class Points(torch.utils.data.Dataset):
    """Points on a line, with noise that is drawn when they are fetched."""

    def __init__(self, noise: bool) -> None:
        self.x = torch.randn(SAMPLES, 5, generator=torch.Generator().manual_seed(3))
        self.noise = noise

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        x = self.x[index]
        if self.noise:
            x = x + 0.1 * torch.randn(5)  # from the generator of the process that fetches
            x = x + 0.1 * torch.randn(5, generator=sample_rng().torch)  # from one that belongs to the sample
        return x, x.sum().reshape(1), index


def build(worker: Worker) -> Program:
    """The program.

    `worker.config`: loader_workers, width, log (a folder), pause (seconds that an iteration takes at least), prepare
    (arguments of `worker.prepare`); kill is for `attach`.
    """
    config = worker.config
    width = config.get("width", 16)
    model = worker.prepare(
        nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 1)),
        **config.get("prepare", {}),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.9)

    def train_step(engine: Engine, batch: Any) -> dict[str, torch.Tensor]:
        x, y, index = batch
        if pause := config.get("pause"):
            threading.Event().wait(pause)
        model.train()
        loss = ((model(x) - y) ** 2).mean()
        optimizer.zero_grad()
        worker.backward(loss)
        optimizer.step()
        scheduler.step()
        if folder := config.get("log"):
            line = {
                "iteration": engine.state.iteration,
                "generation": worker.generation,
                "rank": worker.rank,
                "world": worker.world_size,
                "indices": index.tolist(),
                "loss": loss.item(),
            }
            with Path(folder, f"{worker.rank}.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        return {"loss": loss.detach()}

    @torch.no_grad()
    def eval_step(engine: Engine, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        x, y, _ = batch
        model.eval()
        return model(x), y

    trainer, evaluator = Engine(train_step), Engine(eval_step)
    attach_metric(trainer, "loss", "mean", output=lambda out: out["loss"])
    if config.get("metrics", True):
        from torchmetrics import MeanSquaredError

        attach_metric(evaluator, "mse", MeanSquaredError())
    workers = config.get("loader_workers", 0)
    return Program(
        engines={"trainer": trainer, "evaluator": evaluator},
        data={
            "trainer": worker.loader(
                Points(config.get("noise", True)), global_batch_size=BATCH, shuffle=True, num_workers=workers
            ),
            "evaluator": worker.loader(Points(False), global_batch_size=20),
        },
        state={"model": model, "optimizer": optimizer, "scheduler": scheduler},
    )


def attach(orchestrator: Any) -> None:
    """The driver's side: the digest of all ranks' final states goes into a file beside the runs."""
    config = orchestrator.settings.config

    @orchestrator.on(Events.COMPLETED)
    def tell(run: Any) -> None:
        Path(config["digest"]).write_text(json.dumps({"digests": run.call(digest), "metrics": run.metrics}))

    if (kill := config.get("kill")) is not None:

        @orchestrator.on(Events.ITERATION_COMPLETED(once=kill))
        def die(run: Any) -> None:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)


def digest(worker: Worker) -> str:
    """sha256 of the state of one rank, random numbers included; a collective, where the model is sharded."""
    assert worker.program is not None
    found = hashlib.sha256()
    state = {name: entry.state_dict() for name, entry in worker.program.state.items()}
    _feed(found, {**state, "rng": torch.get_rng_state(), "samples": worker.samples})
    return found.hexdigest()


def _feed(found: Any, value: object) -> None:
    if isinstance(value, torch.Tensor):
        value = value.full_tensor() if hasattr(value, "full_tensor") else value
        found.update(value.detach().contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        for key in value:
            found.update(str(key).encode())
            _feed(found, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(found, item)
    else:
        found.update(repr(value).encode())
