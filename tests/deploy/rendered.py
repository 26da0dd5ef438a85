"""What stands in `deploy/`: rendered from the digits job; `python -m tests.deploy.rendered` renders it anew."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.launch.kubernetes import Options
from orchestrator.launch.targets import render
from orchestrator.specfile import load_spec

__all__ = ["DEPLOY", "IMAGE", "RAY", "committed", "rendered"]

TOP = Path(__file__).parents[2]
DEPLOY = TOP / "deploy"
JOB = "examples/digits/job.yaml"
IMAGE = "registry.example/rankfire/digits@sha256:" + "0" * 64  # nobody's: `rankfire render --image` takes yours
[RAY] = re.findall(r"^ray==([0-9.]+)", (DEPLOY / "constraints.txt").read_text(), re.MULTILINE)
FOLDERS = {
    "kubernetes": "kubernetes", "kueue": "kubernetes", "raycluster": "kubernetes", "slurm": "slurm",
    "aws": "ray-up", "gcp": "ray-up", "on-premise": "ray-up", "compose": "compose",
}  # fmt: skip
ONCE = {"configmap.yaml", "pvc.yaml", "networkpolicy.yaml", "podmonitor.yaml"}  # the same for all of Kubernetes


def rendered() -> dict[str, str]:
    """Path in `deploy/` → text."""
    spec = load_spec(TOP / JOB)
    options = Options(image=IMAGE, ray=RAY)
    files: dict[str, str] = {}
    for target, folder in FOLDERS.items():
        for name, text in render(target, spec, options, job=JOB).items():
            if target == "kubernetes" or name not in ONCE:
                files[f"{folder}/{name}"] = text
    return files


def committed() -> dict[str, str]:
    """The same, as it stands there."""
    return {path: (DEPLOY / path).read_text() for path in rendered() if (DEPLOY / path).exists()}


if __name__ == "__main__":
    for path, text in rendered().items():
        (DEPLOY / path).write_text(text)
