"""Cross-validation by Ray Tune on a real cluster: 4 trials, ASHA stops the poor ones, checkpoints are there.

Ranks are in the trials' own processes; `RANKFIRE_TUNE_WORKERS=2` gives each trial two workers of its own.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from examples import tune
from orchestrator.checkpoints.manifest import Manifest
from orchestrator.checkpoints.verify import damage
from orchestrator.journal import read_journal
from workers.locations import storage_at

WORKERS = int(os.environ.get("RANKFIRE_TUNE_WORKERS", "0"))
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def found(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tuned")
    return folder, {result.config["lr"]: result for result in tune.search(str(folder), workers=WORKERS, epochs=3)}


def test_good_settings_are_validated_on_all_folds_and_poor_ones_are_given_up(found: Any) -> None:
    _, results = found
    assert sorted(results) == sorted(tune.RATES)
    assert [result.error for result in results.values()] == [None] * 4
    assert max(results[rate].metrics["folds"] for rate in (3e-3, 1e-2)) == tune.FOLDS
    assert max(results[rate].metrics["folds"] for rate in (1e-5, 1e-6)) < tune.FOLDS
    assert max(result.metrics["accuracy"] for result in results.values()) > 0.8


def test_the_checkpoint_that_tune_keeps_is_whole_and_that_of_the_last_run(found: Any) -> None:
    folder, results = found
    best = max(results.values(), key=lambda result: result.metrics["accuracy"])
    kept = storage_at(best.checkpoint.path)
    manifest = Manifest.from_json(kept.read("manifest.json"))
    assert damage(kept, manifest) is None
    assert manifest.run == f"lr-{best.config['lr']:g}-fold-{best.metrics['folds'] - 1}"
    last = [line["event"] for line in read_journal(folder / manifest.run / "journal.jsonl")][-1]
    assert last == "RUN_COMPLETED"
