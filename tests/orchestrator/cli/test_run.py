"""The summary of a finished run, whatever its metrics are and whoever reads it."""

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.cli.run import show_result


def result(reason: str = "", checkpoint: str | None = None, **metrics: object) -> Any:
    state = SimpleNamespace(epoch=5, iteration=145)
    return SimpleNamespace(status="completed", reason=reason, state=state, metrics=metrics, checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.12345678, "0.123457"),
        (7, "7"),
        ([[4, 0], [1, 5]], "[[4, 0], [1, 5]]"),
        ({"low": 1.0}, "{'low': 1.0}"),
        ("[/red]", "[/red]"),
        (list(range(100)), str(list(range(100)))[:59] + "…"),
    ],
)
def test_a_metric_of_any_kind_is_a_row(value: object, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    show_result("digits", result(**{"m[/b]": value}))
    rows = [line for line in capsys.readouterr().out.splitlines() if "m[/b]" in line]
    assert [row.split("│")[2].strip() for row in rows] == [shown]


def test_the_summary_says_why_and_keeps_a_path_in_one_piece(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/runs/" + "x" * 200
    show_result("one", result(reason="enough", checkpoint=path))
    out = capsys.readouterr().out
    assert re.search(r"reason +│ enough", out)
    assert path in out


class Gone(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def test_a_summary_that_nobody_reads_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", Gone())
    show_result("digits", result(loss=1.0))
    monkeypatch.setattr("sys.stdout", None)
    show_result("digits", result(loss=1.0))
