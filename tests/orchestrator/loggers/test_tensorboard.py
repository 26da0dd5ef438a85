"""What TensorBoard's own reader finds in the files of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import SpecError
from orchestrator.loggers import TensorBoardLogger
from tests.orchestrator.linear import make
from tests.orchestrator.loggers.logged import logged

pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install 'rankfire[tensorboard]'")


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "histograms": 0, "tensors": 0})
    return found.Reload()


def scalars(found: Any, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in found.Scalars(name)]


def test_scalars_images_histograms_and_hyperparameters_are_there(tmp_path: Path) -> None:
    orchestrator = logged(tmp_path, TensorBoardLogger(every=1))
    found = read(tmp_path / "linear" / "tensorboard")
    assert [step for step, _ in scalars(found, "loss")] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert scalars(found, "loss")[-1] == (6, pytest.approx(orchestrator.metrics["loss"]))
    assert [step for step, _ in scalars(found, "validation/loss")] == [3, 6]
    assert [step for step, _ in scalars(found, "step/loss")] == [1, 2, 3, 4, 5, 6]
    image = found.Images("sample")[0]
    assert (image.step, image.height, image.width) == (6, 2, 2)
    assert sum(found.Histograms("weights")[0].histogram_value.bucket) == 3
    assert "_hparams_/session_start_info" in found.summary_metadata


def test_a_run_that_goes_on_hides_what_is_told_anew(tmp_path: Path) -> None:
    logged(tmp_path, TensorBoardLogger(), max_epochs=2)
    ahead = TensorBoardLogger()  # a start that died after it had told of iteration 9, which no checkpoint holds
    orchestrator = make(tmp_path)
    ahead.attach(orchestrator)
    ahead.open(6)
    ahead.scalars({"loss": 100.0}, 9, 3)
    ahead.close("failed")
    logged(tmp_path, TensorBoardLogger(), max_epochs=3)
    found = scalars(read(tmp_path / "linear" / "tensorboard"), "loss")
    assert [step for step, _ in found] == [3, 6, 9]
    assert found[-1][1] < 100.0


def test_figures_are_images(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: make trackers has it")
    from matplotlib.figure import Figure

    logged(tmp_path, TensorBoardLogger(tmp_path / "elsewhere"), figure=Figure())
    assert read(tmp_path / "elsewhere").Images("curve")[0].step == 6


def test_a_run_in_an_object_store_needs_a_folder(tmp_path: Path) -> None:
    logger = TensorBoardLogger()
    orchestrator = make("memory://boards")
    orchestrator.attach(logger)
    with pytest.raises(SpecError, match=r"TensorBoardLogger\(folder\): expected a folder, .* write TensorBoardLogger"):
        orchestrator.run(1)
