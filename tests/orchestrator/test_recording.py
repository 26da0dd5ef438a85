"""The driver's log: what is printed while a run is on, and what ended it; and nothing that Ray repeats."""

import sys

import pytest

from orchestrator.errors import SystemFailure, TrainingError
from orchestrator.recording import driver_log
from workers.logs import Line, LogPlace


def told(home) -> list[str]:
    lines = [Line.read(line) for line in (home / "logs" / "driver.log").read_bytes().splitlines()]
    return [f"{line.stream}: {line.text}" for line in lines if line is not None]


def test_both_streams_are_logged_and_go_on_to_where_they_went(tmp_path, capsys):
    before = sys.stdout, sys.stderr
    with driver_log(LogPlace(home=str(tmp_path))):
        print("result")
        print("notice", file=sys.stderr)
        print("no end", end="")
    assert (sys.stdout, sys.stderr) == before
    assert told(tmp_path) == ["out: result", "err: notice", "out: no end"]
    assert capsys.readouterr() == ("result\nno end", "notice\n")


def test_what_ray_repeats_for_ranks_is_left_to_their_own_logs(tmp_path, capsys):
    with driver_log(LogPlace(home=str(tmp_path))):
        print("\x1b[36m(RankActor pid=12)\x1b[0m hello [repeated 3x across cluster]")
        print("(RankActor pid=12, ip=10.0.0.2) hello")
        print("(raylet) something is wrong")
    assert told(tmp_path) == ["out: (raylet) something is wrong"]
    assert capsys.readouterr().out.count("hello") == 2


@pytest.mark.parametrize(
    ("error", "last"),
    [
        (SystemFailure("the cluster is gone"), ["err: error: the cluster is gone"]),
        (
            TrainingError("boom", traceback="Traceback\n  line"),
            ["err: Traceback", "err:   line", "err: error: boom"],
        ),
        (KeyboardInterrupt(), ["err: error: KeyboardInterrupt"]),
    ],
)
def test_what_ended_the_run_is_its_last_line(tmp_path, error, last):
    def run() -> None:
        with driver_log(LogPlace(home=str(tmp_path), form="json")):
            raise error

    with pytest.raises(type(error)):
        run()
    assert told(tmp_path) == last


def test_a_stream_that_somebody_put_there_meanwhile_stays(tmp_path, monkeypatch, capsys):
    with driver_log(LogPlace(home=str(tmp_path))):
        monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    assert sys.stdout is sys.__stdout__
