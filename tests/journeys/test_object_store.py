"""A run whose folder is a prefix of a real S3: the ranks write there, and a killed driver goes on from there."""

from __future__ import annotations

import signal
from pathlib import Path

from orchestrator.journal import read_journal
from tests.journeys.test_resume_exact import job, result, run_command


def test_a_driver_killed_while_it_saves_to_an_object_store_goes_on_from_there(
    tmp_path: Path, object_store: object, ray_cluster: str
) -> None:
    common = {
        "workers": {"count": 2, "cpus": 0.5},
        "cluster": {"address": ray_cluster, "insecure": True},
        "train": {"max_epochs": 2},
    }
    calm = run_command(tmp_path, job(tmp_path, "calm", **common))
    assert calm.returncode == 0, calm.stderr
    common["storage"] = "s3://rankfire/journeys"
    killed = run_command(tmp_path, job(tmp_path, "killed", config={"kill": 11}, **common))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    last = run_command(tmp_path, job(tmp_path, "killed", **common))
    assert last.returncode == 0, last.stderr
    assert "run 'killed' goes on from checkpoint step-" in last.stderr
    assert result(tmp_path, "killed") == result(tmp_path, "calm")
    lines = [line["event"] for line in read_journal("s3://rankfire/journeys/killed/journal.jsonl")]
    assert (lines.count("RUN_STARTED"), lines[-1]) == (2, "RUN_COMPLETED")
