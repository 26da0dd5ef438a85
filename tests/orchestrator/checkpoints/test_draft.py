"""A manifest before there are files: where training stood, what the driver's handlers keep, the versions."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator.checkpoints.draft import manifest_of, states_of, versions
from orchestrator.errors import SpecError
from workers.state import State


def test_a_manifest_tells_where_training_stood() -> None:
    state = State()
    state.epoch, state.iteration, state.epoch_length = 2, 20, 10
    state.metrics = {"loss": 0.5, "confusion": [[1, 2], [3, 4]], "best": 7}
    manifest = manifest_of("digits", 4, state, {"handlers": {}})
    assert (manifest.run, manifest.epoch, manifest.iteration, manifest.world_size) == ("digits", 2, 20, 4)
    assert manifest.metrics == {"loss": 0.5, "best": 7}
    assert manifest.versions == versions()


def test_a_handler_whose_state_json_can_not_hold_is_named() -> None:
    stop = SimpleNamespace(state_dict=lambda: {"bad": 3})
    odd = SimpleNamespace(state_dict=lambda: {"bad": {1, 2}})
    assert states_of({"Stop": stop}) == {"Stop": {"bad": 3}}
    with pytest.raises(SpecError) as caught:
        states_of({"Stop": stop, "Odd": odd})
    assert str(caught.value) == (
        "orchestrator.checkpoint: state_dict() of handler Odd: expected numbers, texts, lists and dictionaries of them "
        "by texts, which JSON can hold, received something else: Object of type set is not JSON serializable; leave it "
        "out, or give its parts"
    )


@pytest.mark.parametrize("state", [{1: "a"}, {"deep": [{None: 1}]}, {"deep": ({True: 1},)}])
def test_a_key_that_json_would_make_a_text_is_refused(state: Any) -> None:
    with pytest.raises(SpecError, match=r"of handler Odd: .* received something else: key \w+ is no text; leave it"):
        states_of({"Odd": SimpleNamespace(state_dict=lambda: state)})


def test_versions_are_told_of_what_takes_part() -> None:
    assert set(versions()) == {"python", "rankfire", "torch", "ray"}
    assert versions()["torch"].startswith(torch.__version__.split("+")[0])


def test_a_package_that_is_not_installed_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("workers.versions.version", version)
    assert versions()["rankfire"] == "not installed"
