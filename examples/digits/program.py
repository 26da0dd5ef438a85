"""The rank's side: a small CNN on the 1,797 digit images that ship with scikit-learn."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from workers import Engine, Program, Worker, attach_metric

TEST_EVERY = 5  # each fifth image is for testing


class Net(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Linear(32 * 4 * 4, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, 10))

    def forward(self, images):
        return self.head(self.features(images))


def digits():
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    test = torch.arange(len(y)) % TEST_EVERY == TEST_EVERY - 1
    return TensorDataset(x[~test], y[~test]), TensorDataset(x[test], y[test])


def build(worker: Worker) -> Program:
    train_set, test_set = digits()
    model = worker.prepare(Net(worker.config["hidden"]), worker.config.get("strategy", "ddp"))
    optimizer = torch.optim.Adam(model.parameters(), lr=worker.config["lr"])

    def train_step(engine, batch):
        model.train()
        x, y = (part.to(worker.device) for part in batch)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        worker.backward(loss)
        optimizer.step()
        return {"loss": loss.detach()}

    @torch.no_grad()
    def eval_step(engine, batch):
        model.eval()
        x, y = (part.to(worker.device) for part in batch)
        return {"logits": model(x), "y": y}

    trainer, evaluator = Engine(train_step), Engine(eval_step)
    attach_metric(trainer, "loss", MeanMetric(), output=lambda out: out["loss"])
    attach_metric(
        evaluator, "accuracy", MulticlassAccuracy(10, average="micro"), output=lambda o: (o["logits"], o["y"])
    )
    return Program(
        engines={"trainer": trainer, "evaluator": evaluator},
        data={
            "trainer": worker.loader(train_set, global_batch_size=64, shuffle=True),
            "evaluator": worker.loader(test_set, global_batch_size=128),
        },
        state={"model": model, "optimizer": optimizer},
    )
