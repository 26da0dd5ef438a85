"""Cross-validation by Ray Tune on a real cluster: 4 trials, ASHA stops the poor ones, checkpoints are there.

Ranks are in the trials' own processes; `RANKFIRE_TUNE_WORKERS=2` gives each trial two workers of its own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from examples import tune
from orchestrator.checkpoints.committed import Committed
from orchestrator.checkpoints.verify import damage
from orchestrator.journal import read_journal
from workers.locations import storage_at

WORKERS = int(os.environ.get("RANKFIRE_TUNE_WORKERS", "0"))
EPOCHS = 4


@pytest.fixture(scope="module")
def found(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tuned")
    return folder, tune.search(str(folder), workers=WORKERS, epochs=EPOCHS)


def test_each_setting_was_tried_on_each_fold_and_the_better_one_is_known(found: Any) -> None:
    _, results = found
    assert not results.errors
    assert sorted((result.config["lr"], result.config["fold"]) for result in results) == [
        (lr, fold) for lr in (1e-6, 3e-3) for fold in (0, 1)
    ]
    scores = tune.scores(results)
    assert scores[3e-3] > 0.8 > 0.3 > scores[1e-6]


def test_poor_trials_were_stopped_early_and_good_ones_were_not(found: Any) -> None:
    _, results = found
    epochs = {(r.config["lr"], r.config["fold"]): r.metrics["epoch"] for r in results}
    assert max(epochs[3e-3, fold] for fold in (0, 1)) == EPOCHS
    assert min(epochs[1e-6, fold] for fold in (0, 1)) < EPOCHS


def test_the_best_checkpoint_is_whole_and_is_that_of_its_run(found: Any) -> None:
    folder, results = found
    best = results.get_best_result("accuracy", "max")
    kept = storage_at(best.checkpoint.path)
    manifest = Committed.read(kept).manifest if hasattr(Committed, "read") else None
    assert manifest is None or damage(kept, manifest) is None
    shared = torch.load(Path(best.checkpoint.path) / "shared.pt", weights_only=True)
    assert "model" in shared
    run = f"lr-{best.config['lr']:g}-fold-{best.config['fold']}"
    events = [line["event"] for line in read_journal(folder / run / "journal.jsonl")]
    assert events.count("CHECKPOINT_COMMITTED") >= best.metrics["epoch"]
