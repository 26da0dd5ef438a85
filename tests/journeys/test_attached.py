"""`rankfire run` on a cluster that is there already: it is used, and left as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from orchestrator.journal import read_journal
from tests.leftovers import alive_in_ray
from tests.waiting import expect_none

JOB = """\
run: guest
program: tests.journeys.programs:linear
train: {{max_epochs: 2}}
workers: {{count: 2, placement: STRICT_PACK}}
checkpoint: {{every: 1}}
storage: {storage}
cluster: {{address: "{address}", insecure: true}}
"""


def rankfire(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_run_on_a_cluster_by_address_leaves_it_as_it_was(ray_cluster: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(storage=tmp_path / "runs", address=ray_cluster))
    done = rankfire(tmp_path, "run", "job.yaml")
    assert done.returncode == 0, done.stderr
    assert "completed" in done.stdout
    expect_none(alive_in_ray, "left in Ray")  # asks the cluster, which therefore lives
    events = [line["event"] for line in read_journal(tmp_path / "runs" / "guest" / "journal.jsonl")]
    assert events.count("CHECKPOINT_COMMITTED") == 2


def test_no_cluster_at_the_address_is_said_with_the_mend(ray_cluster: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(storage=tmp_path / "runs", address="127.0.0.1:1"))
    done = rankfire(tmp_path, "run", "job.yaml")
    assert done.returncode == 3
    assert (
        "error: cluster.address: expected a Ray cluster at '127.0.0.1:1', received ConnectionRefusedError"
        in done.stderr
    )
    assert "or leave cluster.address out to use this machine" in done.stderr
