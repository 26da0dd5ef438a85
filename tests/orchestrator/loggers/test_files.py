"""Metrics as CSV and JSON lines, of whole runs in this process."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Checkpoint, Evaluate, Orchestrator
from orchestrator.errors import HandlerError, SpecError
from orchestrator.loggers import CSVLogger, JSONLLogger, Logger
from tests.orchestrator.linear import make
from workers import Events


def run(storage: Path | str, *handlers: Any, max_epochs: int = 3, **given: Any) -> Orchestrator:
    orchestrator = make(storage, config={"lr": 0.1, "model": {"size": 3}}, **given)
    for handler in (Evaluate(every=2), *handlers, Checkpoint()):
        orchestrator.attach(handler)
    orchestrator.run(max_epochs)
    return orchestrator


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "linear" / "metrics.jsonl").read_text().splitlines()]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "linear" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]


def test_each_epoch_is_one_line_with_what_was_measured_at_its_end(tmp_path: Path) -> None:
    orchestrator = run(tmp_path, JSONLLogger())
    rows = lines(tmp_path)
    assert [(row["epoch"], row["iteration"]) for row in rows] == [(1, 3), (2, 6), (3, 9)]
    assert [set(row) - {"iteration", "epoch", "time"} for row in rows] == [
        {"loss"}, {"loss", "validation/loss"}, {"loss"},
    ]  # fmt: skip
    assert rows[-1]["loss"] == orchestrator.metrics["loss"]
    known = json.loads((tmp_path / "linear" / "hyperparameters.json").read_text())
    assert known == {"run": "linear", "seed": 0, "world_size": 1, "lr": 0.1, "model.size": 3}


def test_a_column_that_comes_later_is_in_the_table_too(tmp_path: Path) -> None:
    run(tmp_path, CSVLogger())
    rows = table(tmp_path)
    assert list(rows[0]) == ["iteration", "epoch", "time", "loss", "validation/loss"]
    assert [bool(row["validation/loss"]) for row in rows] == [False, True, False]


def test_between_epochs_the_output_of_steps_is_told(tmp_path: Path) -> None:
    run(tmp_path, JSONLLogger(every=2), CSVLogger(every=2))
    rows = lines(tmp_path)
    assert [row["iteration"] for row in rows] == [2, 3, 4, 6, 8, 9]
    assert [("step/loss" in row, row["iteration"] % 2 == 0) for row in rows] == [
        (even, even) for even in (True, False, True, True, True, False)
    ]
    assert "validation/loss" in rows[3]  # of one iteration there is one line
    assert [int(row["iteration"]) for row in table(tmp_path)] == [2, 3, 4, 6, 8, 9]


@pytest.mark.parametrize("torn", [False, True])
def test_a_run_that_goes_on_has_the_lines_of_one_that_never_stopped(tmp_path: Path, torn: bool) -> None:
    run(tmp_path / "whole", JSONLLogger(every=1), CSVLogger(), max_epochs=4)
    run(tmp_path / "parts", JSONLLogger(every=1), CSVLogger(), max_epochs=2)
    if torn:  # it went on, died, and is to be made again
        for name, row in (
            ("metrics.jsonl", '{"iteration": 7, "epoch": 3, "loss": 1.0}\n{"itera'),
            ("metrics.csv", "7,3\n9"),
        ):
            with (tmp_path / "parts" / "linear" / name).open("a") as file:
                file.write(row)
    run(tmp_path / "parts", JSONLLogger(every=1), CSVLogger(), max_epochs=4)
    assert without_time(lines(tmp_path / "parts")) == without_time(lines(tmp_path / "whole"))
    assert without_time(table(tmp_path / "parts")) == without_time(table(tmp_path / "whole"))


def test_an_object_store_has_the_same_lines(tmp_path: Path) -> None:
    run(tmp_path, JSONLLogger())
    storage = "memory://logged"
    orchestrator = run(storage, JSONLLogger(), CSVLogger())
    text = orchestrator.home.read("metrics.jsonl").decode()
    assert without_time([json.loads(line) for line in text.splitlines()]) == without_time(lines(tmp_path))
    assert orchestrator.home.read("metrics.csv").decode().count("\n") == 4
    orchestrator.home.remove("")


def test_pictures_and_histograms_lie_beside_the_lines(tmp_path: Path) -> None:
    logger = JSONLLogger()

    class Figure:
        def savefig(self, buffer: Any, format: str) -> None:
            buffer.write(format.encode())

    def draw(run: Orchestrator) -> None:
        logger.log_image("samples/first", [[0.0, 1.0]])
        logger.log_histogram("weights", [0.0, 0.1, 1.0], bins=2)
        logger.log_figure("curve", Figure())

    orchestrator = make(tmp_path)
    orchestrator.attach(logger)
    orchestrator.on(Events.EPOCH_COMPLETED(once=2))(draw)
    orchestrator.run(2)
    media = tmp_path / "linear" / "media"
    assert [path.name for path in sorted(media.iterdir())] == [
        "curve-00000006.png", "samples_first-00000006.png", "weights-00000006.json",
    ]  # fmt: skip
    assert json.loads((media / "weights-00000006.json").read_text()) == {"counts": [2, 1], "edges": [0.0, 0.5, 1.0]}
    assert (media / "curve-00000006.png").read_bytes() == b"png"


def test_numbers_that_json_lacks_are_texts(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.attach(JSONLLogger())
    orchestrator.on(Events.EPOCH_COMPLETED)(lambda run: run.metrics.update(worst=float("inf")))
    orchestrator.run(1)
    assert lines(tmp_path)[0]["worst"] == "inf"


# ---------------------------------------------------------------- a tracker that is down
class Down(Logger):
    """A tracker that nobody answers for; but it knows how the run ended."""

    status = ""

    def scalars(self, values: Any, iteration: int, epoch: int) -> None:
        raise ConnectionError("no route to host")

    def close(self, status: str) -> None:
        self.status = status


def test_a_tracker_that_is_down_ends_no_training_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    down = Down()
    with caplog.at_level(logging.WARNING):
        orchestrator = run(tmp_path, down)
    assert orchestrator.state.epoch == 3
    assert caplog.messages == ["Down.scalars: ConnectionError: no route to host; training goes on without it"]
    assert down.status == "completed"


def test_it_ends_the_run_if_it_shall(tmp_path: Path) -> None:
    down = Down(on_error="stop")
    with pytest.raises(HandlerError, match="no route to host"):
        run(tmp_path, down)
    assert down.status == "failed"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"every": 0}, r"CSVLogger\(every\): expected a whole number of iterations"),
        ({"on_error": "cry"}, r"CSVLogger\(on_error\): expected 'warn' or 'stop', received 'cry'"),
    ],
)
def test_arguments_that_cant_be_used_are_refused(given: Any, text: str) -> None:
    with pytest.raises(SpecError, match=text):
        CSVLogger(**given)


def test_a_logger_that_is_attached_to_nothing_knows_no_iteration() -> None:
    with pytest.raises(SpecError, match=r"expected a logger that is attached, .* write orchestrator\.attach"):
        CSVLogger().log_image("x", [[0.0]])


def test_a_metric_does_not_overwrite_the_columns_of_a_row(tmp_path: Path) -> None:
    logger = CSVLogger()
    orchestrator = make(tmp_path)
    orchestrator.attach(logger)
    orchestrator.attach(JSONLLogger())
    orchestrator.on(Events.EPOCH_COMPLETED)(lambda run: logger.log({"iteration": 0.5, "epoch": 0.25, "time": 0.125}))
    orchestrator.run(2)
    rows = table(tmp_path)
    assert {(row["epoch"], row["iteration"]) for row in rows} == {("1", "3"), ("2", "6")}
    assert [rows[0][f"metric/{name}"] for name in ("iteration", "epoch", "time")] == ["0.5", "0.25", "0.125"]


def test_a_logger_is_attached_once_and_a_file_has_one(tmp_path: Path) -> None:
    orchestrator, first = make(tmp_path), CSVLogger()
    orchestrator.attach(first)
    orchestrator.attach(JSONLLogger())
    with pytest.raises(
        SpecError, match=r"attach\(CSVLogger\): expected each logger once, .* received this one once more"
    ):
        orchestrator.attach(first)
    with pytest.raises(SpecError, match=r"received a second one for metrics\.csv"):
        orchestrator.attach(CSVLogger(every=1))
    make(tmp_path / "other").attach(CSVLogger())
