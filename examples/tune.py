"""Cross-validation by Ray Tune: each trial is a run of an orchestrator, and poor ones are stopped early (ASHA).

    python examples/tune.py            # 2 learning rates x 2 folds, each trial on 2 ranks

A trial is a function that makes an orchestrator and reports what it measures. Tune starts trials, stops them, and keeps
the checkpoint of the best one; a trial that is started again goes on from its own newest checkpoint.
"""

import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from orchestrator import Checkpoint, Evaluate, Orchestrator
from workers import Engine, Events, Program, Worker, attach_metric

FOLDS = 2


def fold_of_digits(fold: int) -> tuple[TensorDataset, TensorDataset]:
    """What is trained on, and what is held out: each sample is held out in one fold."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    held_out = torch.arange(len(y)) % FOLDS == fold
    return TensorDataset(x[~held_out], y[~held_out]), TensorDataset(x[held_out], y[held_out])


def build(worker: Worker) -> Program:
    train_set, test_set = fold_of_digits(worker.config["fold"])
    model = worker.prepare(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)))
    optimizer = torch.optim.Adam(model.parameters(), lr=worker.config["lr"])

    def train_step(engine, batch):
        x, y = batch
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        worker.backward(loss)
        optimizer.step()
        return {"loss": loss.detach()}

    @torch.no_grad()
    def eval_step(engine, batch):
        x, y = batch
        return {"right": (model(x).argmax(1) == y).float().mean()}

    trainer, evaluator = Engine(train_step), Engine(eval_step)
    attach_metric(trainer, "loss", "mean", output=lambda out: out["loss"])
    attach_metric(evaluator, "accuracy", "mean", output=lambda out: out["right"])
    return Program(
        engines={"trainer": trainer, "evaluator": evaluator},
        data={
            "trainer": worker.loader(train_set, global_batch_size=32, shuffle=True),
            "evaluator": worker.loader(test_set, global_batch_size=256),
        },
        state={"model": model, "optimizer": optimizer},
    )


def trial(config: dict) -> None:
    """One trial, in a process of Tune's: train a fold, report each epoch with its checkpoint."""
    run = f"lr-{config['lr']:g}-fold-{config['fold']}"
    orchestrator = Orchestrator(build, run=run, workers=config["workers"], config=config, storage=config["storage"])
    orchestrator.attach(Evaluate())

    @orchestrator.on(Events.EPOCH_COMPLETED)
    def report(run):
        accuracy = run.metrics["validation/accuracy"]
        folder = run.checkpoint(wait=True)
        tune.report({"accuracy": accuracy, "epoch": run.state.epoch}, checkpoint=tune.Checkpoint.from_directory(folder))

    orchestrator.attach(Checkpoint(keep=1))
    orchestrator.run(max_epochs=config["epochs"])


def search(storage: str, *, workers: int = 2, epochs: int = 8, concurrent: int = 2) -> tune.ResultGrid:
    """All settings on all folds; the result of each."""
    space = {
        "lr": tune.grid_search([3e-3, 1e-6]),
        "fold": tune.grid_search(list(range(FOLDS))),
        "workers": workers,
        "epochs": epochs,
        "storage": storage,
    }
    asha = ASHAScheduler(metric="accuracy", mode="max", time_attr="epoch", max_t=epochs, grace_period=1)
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),  # the ranks of a trial reserve their own
        param_space=space,
        tune_config=tune.TuneConfig(scheduler=asha, max_concurrent_trials=concurrent),
        run_config=tune.RunConfig(name="digits", storage_path=os.path.join(storage, "tune"), verbose=0),
    )
    return tuner.fit()


def scores(results: tune.ResultGrid) -> dict[float, float]:
    """Learning rate → accuracy over the folds; the last one of each trial counts, also if it was stopped early."""
    found: dict[float, list[float]] = {}
    for result in results:
        found.setdefault(result.config["lr"], []).append(result.metrics["accuracy"])
    return {rate: sum(folds) / len(folds) for rate, folds in found.items()}


if __name__ == "__main__":
    results = search(str(Path(sys.argv[1] if len(sys.argv) > 1 else "runs").resolve()))
    for rate, accuracy in scores(results).items():
        print(f"lr {rate:g}: {accuracy:.3f} over {FOLDS} folds")
    print(f"best checkpoint: {results.get_best_result('accuracy', 'max').checkpoint}")
