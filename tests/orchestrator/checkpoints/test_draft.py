"""A manifest before there are files: where training stood, and the versions."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest
import torch

from orchestrator.checkpoints.draft import manifest_of, versions
from workers.state import State


def test_a_manifest_tells_where_training_stood() -> None:
    state = State()
    state.epoch, state.iteration, state.epoch_length = 2, 20, 10
    state.metrics = {"loss": 0.5, "confusion": [[1, 2], [3, 4]], "best": 7}
    manifest = manifest_of("digits", 4, state, {"handlers": {}})
    assert (manifest.run, manifest.epoch, manifest.iteration, manifest.world_size) == ("digits", 2, 20, 4)
    assert manifest.metrics == {"loss": 0.5, "best": 7}
    assert manifest.versions == versions()


def test_versions_are_told_of_what_takes_part() -> None:
    assert set(versions()) == {"python", "rankfire", "torch", "ray"}
    assert versions()["torch"].startswith(torch.__version__.split("+")[0])


def test_a_package_that_is_not_installed_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("workers.versions.version", version)
    assert versions()["rankfire"] == "not installed"
