"""A window of iterations under the profiler."""

import json
from pathlib import Path

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
