"""Drivers are killed at random iterations; the same command, given again, ends where nothing had happened."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import Checkpoint, Orchestrator
from tests.journeys import stochastic
from workers import Events, Worker

EPOCHS = 8
PER_EPOCH = 8  # 90 samples in batches of 12
PRELOAD = ["orchestrator.orchestrator", "orchestrator.local", "orchestrator.reduce", "orchestrator.checkpoints.plan"]
PRELOAD += ["workers.saving", "torchmetrics"]
SEED = int(os.environ.get("RANKFIRE_SEED", "20"))
KILLS_ON_RAY = int(os.environ.get("RANKFIRE_KILLS", "2"))


def job(folder: Path, run: str, **changes: Any) -> dict[str, Any]:
    config = {"digest": str(folder / f"{run}.json"), **changes.pop("config", {})}
    return {
        "run": run,
        "program": "tests.journeys.stochastic:build",
        "handlers": "tests.journeys.stochastic:attach",
        "config": config,
        "train": {"max_epochs": EPOCHS},
        "workers": 0,
        "evaluate": {"engine": "evaluator"},
        "checkpoint": {"every": {"iterations": 4}, "keep": 2},
        "storage": str(folder / "runs"),
        **changes,
    }


def result(folder: Path, run: str) -> Any:
    return json.loads((folder / f"{run}.json").read_text())


def kill_times(kills: int) -> list[int]:
    """Iterations at which drivers die, each later than the one before; the seed is printed if a test fails."""
    print(f"RANKFIRE_SEED={SEED}")
    return sorted(random.Random(SEED).sample(range(1, EPOCHS * PER_EPOCH), kills))


# ---------------------------------------------------------------- one process: 20 kills
def run_here(text: str) -> None:
    """In a process that has forked off one which has everything imported: run a job."""
    from multiprocessing import resource_tracker

    from orchestrator.spec_problems import make_spec

    # As a process of its own has one: its semaphores are then gone with it, however it ends.
    resource_tracker._resource_tracker._fd = resource_tracker._resource_tracker._pid = None
    Orchestrator.from_spec(make_spec(json.loads(text)), roots=[os.getcwd()]).run()


def exit_code_of(given: dict[str, Any]) -> int | None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=run_here, args=(json.dumps(given),))
    process.start()
    process.join(100)
    return process.exitcode


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("loader_workers", "kills"), [(0, 20), (1, 5)])
def test_kills_of_the_driver_change_nothing(tmp_path: Path, loader_workers: int, kills: int) -> None:
    config = {"loader_workers": loader_workers}
    assert exit_code_of(job(tmp_path, "calm", config=config)) == 0
    for kill in kill_times(kills):
        assert exit_code_of(job(tmp_path, "killed", config={**config, "kill": kill})) == -signal.SIGKILL
    assert exit_code_of(job(tmp_path, "killed", config=config)) == 0
    assert result(tmp_path, "killed") == result(tmp_path, "calm")


# ---------------------------------------------------------------- two ranks on Ray
def run_command(folder: Path, given: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(given))
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", "run", str(file)],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.timeout(120 + 60 * KILLS_ON_RAY)
def test_kills_of_a_driver_of_two_ranks_change_nothing(tmp_path: Path, ray_cluster: str) -> None:
    common = {"workers": {"count": 2, "cpus": 0.5}, "cluster": {"address": ray_cluster, "insecure": True}}
    config = {"loader_workers": 1}
    calm = run_command(tmp_path, job(tmp_path, "calm", config=config, **common))
    assert calm.returncode == 0, calm.stderr
    for kill in kill_times(KILLS_ON_RAY):
        killed = run_command(tmp_path, job(tmp_path, "killed", config={**config, "kill": kill}, **common))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    last = run_command(tmp_path, job(tmp_path, "killed", config=config, **common))
    assert last.returncode == 0, last.stderr
    assert "run 'killed' goes on from checkpoint step-" in last.stderr
    assert result(tmp_path, "killed") == result(tmp_path, "calm")


# ---------------------------------------------------------------- other numbers of ranks
def weights(worker: Worker) -> dict[str, Any]:
    assert worker.program is not None
    state: Any = worker.program.state["model"].state_dict()
    return {name: value.clone() for name, value in state.items()}


def mse_of(found: dict[str, Any]) -> float:
    """What one process alone measures with these weights."""
    import torch

    program = stochastic.build(Worker(config={"metrics": False}))
    model: Any = program.state["model"]
    model.load_state_dict(found)
    model.eval()
    data = stochastic.Points(False)
    with torch.no_grad():
        return float(((model(data.x) - data.x.sum(1, keepdim=True)) ** 2).mean())


@pytest.mark.timeout(400)
def test_four_three_five_and_two_ranks_share_one_epoch(tmp_path: Path, ray_cluster: str) -> None:
    measured: list[tuple[float, float]] = []
    for workers, last in ((4, 2), (3, 4), (5, 6), (2, 8)):
        orchestrator = Orchestrator(
            stochastic.build,
            run="shared",
            workers={"count": workers, "cpus": 0.5},
            config={"log": str(tmp_path)},
            storage=tmp_path / "runs",
            cluster={"address": ray_cluster, "insecure": True},
        )
        orchestrator.attach(Checkpoint(every={"iterations": 2}))

        @orchestrator.on(Events.ITERATION_COMPLETED(once=last), blocking=True)
        def stop(run: Orchestrator) -> None:
            mse = run.evaluate("evaluator")["mse"]
            equal = run.call(weights)
            assert all((equal[0][name] == other[name]).all() for other in equal for name in other)
            measured.append((mse, mse_of(equal[0])))
            run.terminate("enough")

        orchestrator.run(max_epochs=1)
    lines = [json.loads(line) for file in tmp_path.glob("*.jsonl") for line in file.read_text().splitlines()]
    consumed = [index for line in lines for index in line["indices"]]
    assert sorted(consumed) == list(range(stochastic.SAMPLES))
    assert {line["rank"] for line in lines} == {0, 1, 2, 3, 4}
    assert [together for together, _ in measured] == pytest.approx([alone for _, alone in measured], abs=1e-6)
