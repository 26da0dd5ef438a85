"""A window of iterations under the profiler."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.handlers.regression import regression
from workers import Events
from workers.handlers import Profile


def test_the_trace_of_the_window_holds_its_operators(tmp_path: Path) -> None:
    made = regression()
    Profile(first=2, iterations=2, folder=tmp_path / "traces").attach(made.trainer)
    made.train()
    (trace,) = (tmp_path / "traces").iterdir()
    assert trace.name == "rank-0000-iterations-2-3.json"
    names = [event["name"] for event in json.loads(trace.read_text())["traceEvents"]]
    assert names.count("Optimizer.step#SGD.step") == 2


def test_a_run_that_ends_within_the_window_leaves_the_trace_so_far(tmp_path: Path) -> None:
    made = regression()
    Profile(first=2, iterations=100, folder=tmp_path).attach(made.trainer)
    made.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), made.trainer.terminate)
    made.train()
    assert [trace.name for trace in tmp_path.iterdir()] == ["rank-0000-iterations-2-4.json"]


def test_windows_that_overlap_are_refused_and_one_behind_the_other_is_not(tmp_path: Path) -> None:
    made = regression()
    Profile(first=2, iterations=2, folder=tmp_path).attach(made.trainer)
    with pytest.raises(ValueError, match=r"received iterations 3 to 5 where another one has 2 to 3; .* begin at 4$"):
        Profile(first=3, folder=tmp_path).attach(made.trainer)
    Profile(first=4, iterations=2, folder=tmp_path).attach(made.trainer)
    made.train()
    assert sorted(trace.name[10:-5] for trace in tmp_path.iterdir()) == ["iterations-2-3", "iterations-4-5"]


def test_where_another_profiler_is_at_work_the_window_is_left_out(tmp_path: Path, caplog: Any) -> None:
    made = regression()
    Profile(first=2, folder=tmp_path).attach(made.trainer)
    with torch.profiler.profile():
        made.train()
    assert "another profiler is at work at iteration 2" in caplog.text
    assert not list(tmp_path.iterdir())


def test_options_and_folders_that_cant_be_used_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"Profile\(options\): expected arguments of .*, received bogus .* record_shapes"
    ):
        Profile(bogus=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"Profile\(folder\): expected a folder that can be written to, received "):
        Profile(folder=tmp_path / "file" / "traces").attach(regression().trainer)


def test_a_trace_that_cant_be_written_is_told_and_training_goes_on(tmp_path: Path, caplog: Any) -> None:
    made = regression()
    Profile(first=2, iterations=1, folder=tmp_path / "traces").attach(made.trainer)

    @made.trainer.on(Events.ITERATION_COMPLETED(once=1))
    def lose() -> None:
        shutil.rmtree(tmp_path / "traces")
        (tmp_path / "traces").write_text("")

    with caplog.at_level(logging.WARNING):
        assert made.train().trainer.state.epoch == 1
    assert "iterations-2-2.json is not written: " in caplog.text
