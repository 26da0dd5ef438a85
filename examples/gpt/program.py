"""The rank's side: bfloat16, accumulated gradients, clipping, warm-up and cosine; DDP, or FSDP2 by the config."""

import math

import torch
import torch.nn.functional as F
from torchmetrics import MeanMetric

from examples.gpt.model import GPT, Block
from examples.gpt.text import CHARACTERS, training_and_validation
from workers import Engine, Events, Program, Worker, attach_metric, supervised_eval_step, supervised_train_step


def mean_loss(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def warm_up_and_cosine(step: int, *, warm_up: int, steps: int) -> float:
    """The share of the learning rate in a step: up in a line, then down along a cosine to a tenth."""
    if step < warm_up:
        return (step + 1) / warm_up
    done = min((step - warm_up) / max(steps - warm_up, 1), 1.0)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def parts(model: torch.nn.Module, decay: float) -> list[dict]:
    """Weights decay; biases and norms do not."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def build(worker: Worker) -> Program:
    config = worker.config
    training, validation = training_and_validation(config["length"])
    model = worker.prepare(
        GPT(
            characters=len(CHARACTERS),
            length=config["length"],
            layers=config["layers"],
            width=config["width"],
            heads=config["heads"],
            dropout=config["dropout"],
        ),
        config["strategy"],
        activation_checkpointing=[Block] if config["activation_checkpointing"] else (),
    )
    optimizer = torch.optim.AdamW(parts(model, decay=0.1), lr=config["lr"], betas=(0.9, 0.95))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_up_and_cosine(step, warm_up=config["warm_up"], steps=config["steps"])
    )

    trainer = Engine(
        supervised_train_step(model, optimizer, mean_loss, amp="bf16", accumulate=config["accumulate"], clip=1.0)
    )
    evaluator = Engine(
        supervised_eval_step(model, amp="bf16", output=lambda x, y, logits: {"loss": mean_loss(logits, y)})
    )
    attach_metric(trainer, "loss", MeanMetric(), output=lambda loss: loss)
    attach_metric(evaluator, "loss", MeanMetric(), output=lambda out: out["loss"])

    @trainer.on(Events.ITERATION_COMPLETED)
    def next_learning_rate(engine):
        scheduler.step()

    return Program(
        engines={"trainer": trainer, "evaluator": evaluator},
        data={
            "trainer": worker.loader(training, global_batch_size=config["batch_size"], shuffle=True),
            "evaluator": worker.loader(validation, global_batch_size=4 * config["batch_size"]),
        },
        state={"model": model, "optimizer": optimizer, "scheduler": scheduler},
    )
