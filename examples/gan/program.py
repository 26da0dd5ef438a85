"""The rank's side: a discriminator and a generator that learn from each other, on 1,797 real images of digits."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torchmetrics import MeanMetric

from examples.gan.events import GanEvents
from workers import Engine, Program, Worker, attach_metric

NOISE = 16


def generator_net(hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(NOISE, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, 64), nn.Sigmoid())


def discriminator_net(hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, hidden), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(hidden, 1))


def images():
    pixels, _ = load_digits(return_X_y=True)
    return torch.utils.data.TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16)


def judged(logits, real: bool):
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, 0.9 if real else 0.0))


def build(worker: Worker) -> Program:
    hidden, lr = worker.config["hidden"], worker.config["lr"]
    generator = worker.prepare(generator_net(hidden))
    discriminator = worker.prepare(discriminator_net(hidden))
    optimizers = {
        "generator": torch.optim.Adam(generator.parameters(), lr=lr, betas=(0.5, 0.999)),
        "discriminator": torch.optim.Adam(discriminator.parameters(), lr=lr, betas=(0.5, 0.999)),
    }

    def train_step(engine, batch):
        (real,) = batch
        real = real.to(worker.device)
        noise = torch.randn(len(real), NOISE, device=worker.device)

        fake = generator(noise)
        verdicts = discriminator(torch.cat([real, fake.detach()]))  # one pass: DDP reduces once for each backward
        loss_d = (judged(verdicts[: len(real)], True) + judged(verdicts[len(real) :], False)) / 2
        optimizers["discriminator"].zero_grad()
        worker.backward(loss_d)
        optimizers["discriminator"].step()
        engine.fire_event(GanEvents.DISCRIMINATOR_UPDATED)

        with worker.no_sync(discriminator):  # what reaches the discriminator here, nobody uses
            loss_g = judged(discriminator(fake), True)
            optimizers["generator"].zero_grad()
            worker.backward(loss_g)
        optimizers["generator"].step()
        engine.fire_event(GanEvents.GENERATOR_UPDATED)
        return {"discriminator": loss_d.detach(), "generator": loss_g.detach()}

    trainer = Engine(train_step)
    for name in optimizers:
        attach_metric(trainer, name, MeanMetric(), output=lambda out, name=name: out[name])
    return Program(
        engines={"trainer": trainer},
        data={"trainer": worker.loader(images(), global_batch_size=worker.config["batch_size"], shuffle=True)},
        state={
            "generator": generator,
            "discriminator": discriminator,
            "generator optimizer": optimizers["generator"],
            "discriminator optimizer": optimizers["discriminator"],
        },
    )
