"""Cross-validation by Ray Tune over orchestrators; poor settings are given up early (ASHA).

    python examples/tune.py            # 4 learning rates, each on up to 3 folds, each run on 2 ranks

A trial is a function: it validates one setting fold by fold, each in a run of an orchestrator, and reports the mean so
far with a checkpoint. A trial that is started again goes on from the newest checkpoints of its runs.
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
from workers import Engine, Program, Worker, attach_metric

FOLDS = 3
RATES = [3e-3, 1e-2, 1e-5, 1e-6]


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


def validate(config: dict, fold: int) -> tuple[float, str]:
    """Train with one fold held out: the accuracy there, and the checkpoint."""
    run = f"lr-{config['lr']:g}-fold-{fold}"
    config = {**config, "fold": fold}
    orchestrator = Orchestrator(
        build,
        run=run,
        workers=config["workers"],
        config=config,
        storage=config["storage"],
        cluster={"start_timeout": 600},  # its ranks may have to wait for those of other trials
    )
    orchestrator.attach(Evaluate())
    orchestrator.attach(Checkpoint(keep=1))
    result = orchestrator.run(max_epochs=config["epochs"])
    return result.metrics["validation/accuracy"], result.checkpoint


def trial(config: dict) -> None:
    """One setting, in a process of Tune's: validate it fold by fold, report the mean after each."""
    accuracies = []
    for fold in range(FOLDS):
        accuracy, checkpoint = validate(config, fold)
        accuracies.append(accuracy)
        tune.report(
            {"accuracy": sum(accuracies) / len(accuracies), "folds": len(accuracies)},
            checkpoint=tune.Checkpoint.from_directory(checkpoint),
        )


def search(storage: str, *, workers: int = 2, epochs: int = 5, concurrent: int = 2) -> tune.ResultGrid:
    """Validate each learning rate; poor ones are given up after a fold or two."""
    asha = ASHAScheduler(
        metric="accuracy", mode="max", time_attr="folds", max_t=FOLDS, grace_period=1, reduction_factor=2
    )
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),  # the ranks of a trial reserve their own
        param_space={"lr": tune.grid_search(RATES), "workers": workers, "epochs": epochs, "storage": storage},
        tune_config=tune.TuneConfig(scheduler=asha, max_concurrent_trials=concurrent),
        run_config=tune.RunConfig(name="digits", storage_path=os.path.join(storage, "tune"), verbose=0),
    )
    return tuner.fit()


if __name__ == "__main__":
    results = search(str(Path(sys.argv[1] if len(sys.argv) > 1 else "runs").resolve()))
    for result in results:
        print(f"lr {result.config['lr']:g}: {result.metrics['accuracy']:.3f} over {result.metrics['folds']} folds")
    print(f"best checkpoint: {results.get_best_result('accuracy', 'max').checkpoint.path}")
