"""The doctor: what it says of this machine, of a job, of a cluster, and with which exit code."""

import json
import sys
from pathlib import Path

import pytest

from tests.orchestrator.cli.conftest import Rankfire
from tests.orchestrator.launch.dashboard import Cluster, serving

JOB = """\
run: linear
program: rf_doctor_program:build
train: {{max_epochs: 5}}
workers: 2
storage: {storage}
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rf_doctor_program.py").write_text("def build(worker): ...\n")
    (tmp_path / "job.yaml").write_text(JOB.format(storage=tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "job.yaml"


def found(out: str) -> dict[str, str]:
    return {finding["what"]: finding["state"] for finding in json.loads(out)}


def test_a_job_that_finds_what_it_needs(job: Path, rankfire: Rankfire) -> None:
    code, out, err = rankfire("doctor", "job.yaml", "--json")
    states = found(out)
    assert code == 0, err
    assert {"torch", "ray", "token", "ports", "gpus", "checkpoints"} <= states.keys()
    assert "bad" not in states.values()
    assert list((job.parent / "runs").iterdir()) == []


def test_how_often_to_save_is_told_once_the_run_has_saved(runs: Path, job: Path, rankfire: Rankfire) -> None:
    _, out, _ = rankfire("doctor", "job.yaml")
    [line] = [line for line in out.splitlines() if "checkpoints:" in line]
    assert line.startswith("ok      checkpoints: save every ")
    assert "step-00000009" in line


def test_a_storage_that_can_not_be_written_exits_3(job: Path, rankfire: Rankfire) -> None:
    (job.parent / "runs").write_text("in the way")
    code, out, err = rankfire("doctor", "job.yaml")
    assert (code, "BAD     storage from" in out) == (3, True)
    assert err.startswith("error: doctor: not well: storage from ")


@pytest.mark.parametrize(
    ("cluster", "code", "text"),
    [
        (Cluster("disabled"), 0, "lets everybody in"),
        (Cluster(version="2.59.9"), 0, "it has Ray 2.59.9, here is "),
        (Cluster(token="another"), 3, "received another one, from RAY_AUTH_TOKEN"),
    ],
)
def test_what_is_said_of_a_cluster(
    cluster: Cluster, code: int, text: str, rankfire: Rankfire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    with serving(cluster) as url:
        ended, out, _ = rankfire("doctor", "--address", url)
    assert (ended, text in out) == (code, True), out


def test_the_storage_is_tried_from_every_node_of_the_cluster(
    ray_cluster: str, job: Path, rankfire: Rankfire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[3]), *sys.path])
    code, out, err = rankfire("doctor", "job.yaml", "--insecure", "--json")
    assert code == 0, out + err
    assert sum(what.startswith("storage from ") for what in found(out)) == 2  # from here, and from the node
