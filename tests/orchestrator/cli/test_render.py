"""The command that renders: to the terminal, into a folder, as JSON; and what it refuses."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from tests.orchestrator.cli.conftest import Rankfire

IMAGE = "registry.example/x@sha256:" + "a" * 64


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rf_render_program.py").write_text("def build(worker): ...\n")
    text = "run: digits\nprogram: rf_render_program:build\ntrain: {max_epochs: 5}\nworkers: 2\n"
    (tmp_path / "job.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_manifests_are_printed_as_one_stream(job: Path, rankfire: Rankfire) -> None:
    code, out, _ = rankfire("render", "kubernetes", "job.yaml", "--image", IMAGE)
    kinds = [document["kind"] for document in yaml.safe_load_all(out)]
    assert (code, kinds) == (0, ["ConfigMap", "PersistentVolumeClaim", "NetworkPolicy", "PodMonitor", "RayJob"])


def test_files_are_written_and_named(job: Path, rankfire: Rankfire) -> None:
    _, out, _ = rankfire("render", "slurm", "job.yaml", "--out", "deploy", "--json")
    assert json.loads(out) == ["deploy/run.sbatch"]
    assert "orchestrator run job.yaml" in (job / "deploy" / "run.sbatch").read_text()
    assert list(json.loads(rankfire("render", "compose", "job.yaml", "--image", IMAGE, "--json")[1])) == [
        "compose.yaml"
    ]


def test_what_needs_an_image_says_so(job: Path, rankfire: Rankfire) -> None:
    code, _, err = rankfire("render", "kueue", "job.yaml")
    assert (code, "build one with deploy/image" in err) == (2, True)


def test_what_is_not_safe_is_refused_not_rendered(job: Path, rankfire: Rankfire) -> None:
    code, out, err = rankfire("render", "kubernetes", "job.yaml", "--image", "rayproject/ray:latest")
    assert (code, out) == (2, "")
    assert "expected one by digest" in err


def test_a_folder_that_can_not_be_written_is_told(job: Path, rankfire: Rankfire) -> None:
    (job / "file").touch()
    code, _, err = rankfire("render", "slurm", "job.yaml", "--out", "file/below")
    assert (code, "name another" in err) == (2, True)


def test_it_imports_no_ray(job: Path, rankfire: Rankfire) -> None:
    import subprocess

    top = Path(__file__).parents[3]
    code = f"""
import sys; sys.path.insert(0, {str(top)!r})
from orchestrator.cli.main import main
try:
    main(["render", "slurm", "job.yaml"])
except SystemExit:
    print(sorted({{"torch", "ray"}} & set(sys.modules)), file=sys.stderr)
"""
    end = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert end.stderr == "[]\n"
