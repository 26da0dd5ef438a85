"""The head of a real Ray (GCS) dies in the middle of a run: for good, or to be started again with what it stored."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import Orchestrator
from orchestrator.journal import read_journal
from tests.conftest import RayNodes, nodes_of_ray
from tests.journeys import stochastic
from tests.journeys.ray_job import Job, assert_equal
from tests.waiting import wait_until
from workers import Events, Worker
from workers.stacks import state_of

LIMIT = "30"  # seconds after which Ray ends what does not reach its head, instead of 60


def attach(orchestrator: Orchestrator) -> None:
    """The driver's side of the job file: the head dies after an epoch, the ranks wait at the end of another one."""
    stochastic.attach(orchestrator)
    config = orchestrator.settings.config

    @orchestrator.on(Events.EPOCH_COMPLETED(once=2))
    def kill(run: Orchestrator) -> None:
        if config["head"] is not None:
            os.kill(config["head"], signal.SIGKILL)

    @orchestrator.on(Events.EPOCH_COMPLETED(once=4))
    def hold(run: Orchestrator) -> None:
        if config["head"] is not None:
            wait_until(lambda: asked(run) and said(Path(config["folder"]), "HEAD_LOST"), what="it", timeout=60)


def asked(run: Orchestrator) -> bool:
    run.call(nothing)  # the loop turns while it is asked
    return True


def nothing(worker: Worker) -> None:
    pass


def said(folder: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in read_journal(folder / "runs" / "headless" / "journal.jsonl") if line["event"] == event]


def rankfire(folder: Path, address: str, head: int | None) -> subprocess.CompletedProcess[str]:
    """The same command each time, but for the handler that kills the head."""
    job = {
        "run": "headless",
        "program": "tests.journeys.stochastic:build",
        "handlers": "tests.journeys.test_lost_head:attach",
        "config": {"digest": str(folder / "digest.json"), "head": head, "folder": str(folder)},
        "train": {"max_epochs": 6},
        "workers": {"count": 2, "cpus": 0.5},
        "evaluate": {"engine": "evaluator"},
        "checkpoint": {"every": 1},
        "storage": str(folder / "runs"),
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", "run", str(folder / "job.yaml")],
        env={**os.environ, "PYTHONPATH": os.getcwd(), "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=150,
    )


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, ray_nodes: RayNodes) -> Job:
    """The run in which nothing happens."""
    return Job(tmp_path_factory.mktemp("calm"), ray_nodes.address, "calm").run()


@pytest.mark.timeout(400)
def test_a_head_that_is_gone_ends_the_run_saved_and_the_same_command_goes_on_in_another_cluster(
    tmp_path: Path, private_root: Path, ray_nodes: RayNodes, calm: Job
) -> None:
    with nodes_of_ray(private_root, RAY_gcs_rpc_server_reconnect_timeout_s=LIMIT) as nodes:
        head = nodes.head.all_processes["gcs_server"][0].process
        ended = rankfire(tmp_path, nodes.address, head.pid)
        assert head.wait(1) == -signal.SIGKILL
        assert ended.returncode == 3, ended.stderr
        assert f"error: cluster: expected its head (GCS) to answer at {nodes.address}, received nothing" in ended.stderr
        saved = said(tmp_path, "CHECKPOINT_COMMITTED")[-1]
        assert saved["iteration"] >= 4 * 8, "what was trained without the head is saved"
        assert f"saved as {saved['checkpoint']}; the same command goes on from there" in ended.stderr
        assert said(tmp_path, "RUN_FAILED")[0]["error"] == "HeadLostError"
        ranks = [line["pid"] for line in said(tmp_path, "WORKER_JOINED")]
        wait_until(lambda: all(state_of(pid) in {"", "Z"} for pid in ranks), what="the end of the ranks")
    again = rankfire(tmp_path, ray_nodes.address, None)
    assert again.returncode == 0, again.stderr
    assert said(tmp_path, "RESUMED")[0]["checkpoint"] == saved["checkpoint"]
    assert json.loads((tmp_path / "digest.json").read_text())["digests"] == calm.digests


@pytest.mark.timeout(400)
def test_training_goes_on_while_a_head_with_storage_is_started_again_and_a_rank_is_replaced_then(
    tmp_path: Path, private_root: Path, calm: Job
) -> None:
    storage = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(tmp_path / "gcs")}
    with nodes_of_ray(private_root, **storage) as nodes:
        job = Job(tmp_path, nodes.address, "restarted")
        trained: list[bool] = []

        def away() -> bool:
            group: Any = job.orchestrator._run and job.orchestrator._run.group
            return bool(group._nodes.head_is_away)

        @job.orchestrator.on(Events.EPOCH_COMPLETED(once=4))
        def start(run: Orchestrator) -> None:
            trained.append(away())
            nodes.head.start_gcs_server()
            wait_until(lambda: not away(), what="an answer of the head", timeout=60)
            os.kill(job.pids[1], signal.SIGKILL)

        job.at(3, nodes.head.kill_gcs_server).hold(2, away, "silence of the head")
        job.hold(5, lambda: job.recovered, "another rank").run()
        assert trained == [True]
        assert [(lost.rank, lost.cause) for lost in job.lost] == [(1, "crash")]
        assert [(one.ranks, one.source) for one in job.recovered] == [((1,), "snapshot")]
        assert job.lines("HEAD_LOST") == []
        assert_equal(job, calm)
