"""The commands that look at runs: list, status, show, logs, stop; each reads folders only, and has JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli.storage import print_json, time_in_words
from orchestrator.lease import Lease
from tests.orchestrator.cli.conftest import Rankfire
from workers.locations import storage_at
from workers.logs import LineLog, LogPlace

TOP = Path(__file__).parents[3]


def log(runs: Path, name: str, who: str, *texts: str) -> None:
    lines = LineLog(LogPlace(home=str(runs / "linear")), name, who)
    for text in texts:
        lines.take("out", text)
    lines.close()


def test_list_shows_every_run_with_its_state(runs: Path, rankfire: Rankfire) -> None:
    code, out, _ = rankfire("list")
    rows = {line.split()[0]: line.split()[1:4] for line in out.splitlines()}
    assert (code, rows["run"]) == (0, ["state", "epoch", "iteration"])
    assert (rows["linear"], rows["empty"]) == (["completed", "3", "9"], ["completed", "1", "3"])


def test_list_as_json_and_by_state(runs: Path, rankfire: Rankfire) -> None:
    _, out, _ = rankfire("list", "--json")
    assert {run["run"] for run in json.loads(out)} == {"linear", "empty"}
    _, out, _ = rankfire("list", "--json", "--state", "failed", "--state", "lost")
    assert json.loads(out) == []


def test_a_run_that_can_not_be_read_spoils_no_others_line(runs: Path, rankfire: Rankfire) -> None:
    (runs / "loop").symlink_to("loop")
    (runs / "empty" / "journal.jsonl").unlink()
    (runs / "empty" / "journal.jsonl").mkdir()
    code, out, _ = rankfire("list", "--json")
    found = {run["run"]: run for run in json.loads(out)}
    assert (code, found["linear"]["state"]) == (0, "completed")
    assert [found[name]["state"] for name in ("loop", "empty")] == ["unreadable"] * 2
    assert "can't be read" in found["loop"]["reason"]


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "RUN_COMPLETED", "epoch": "x", "iteration": [1], "time": "yesterday"}',
        '{"event": "RUN_COMPLETED", "epoch": NaN, "iteration": -1, "time": NaN}',
        '{"event": "RUN_COMPLETED", "time": 1e300}', '{"event": "RUN_COMPLETED"}',
        "{}", "[]", '"x"', "\x00", "[" * 99999,
        '{"event": ["x"], "epoch": 1}', '{"event": "RUN_COMPLETED", "time": 9e99999, "epoch": ' + "9" * 5000 + "}",
        '{"event": "RUN_STARTED", "roots": "/"}', '{"event": "RUN_STARTED", "roots": [1, null]}',
    ],
)  # fmt: skip
def test_a_damaged_line_of_a_journal_is_told_and_the_others_are_shown(
    runs: Path, rankfire: Rankfire, line: str
) -> None:
    with (runs / "linear" / "journal.jsonl").open("ab") as journal:
        journal.write(line.encode() + b"\n\xff\xfe\n")
    for command in (["list"], ["status", "linear"], ["show", "linear"]):
        code, out, err = rankfire(*command, "--json")
        assert (code, err) == (0, ""), command
        json.loads(out, parse_constant=pytest.fail)
        assert rankfire(*command)[0] == 0
    assert json.loads(rankfire("show", "linear", "--json")[1])["timeline"][-1]["event"] == "UNREADABLE"
    code, _, err = rankfire("resume", "linear")
    assert (code, "none: it was started from Python" in err) == (2, True)


@pytest.mark.parametrize(
    ("content", "expected", "text"), [(b"\xff\xfe", 2, "expected text in UTF-8"), (None, 3, "can't be read")]
)
def test_a_job_file_that_can_not_be_read_is_told(
    runs: Path, rankfire: Rankfire, content: bytes | None, expected: int, text: str
) -> None:
    file = runs / "linear" / "spec.yaml"
    file.mkdir() if content is None else file.write_bytes(content)
    code, _, err = rankfire("resume", "linear")
    assert (code, text in err, "Traceback" in err) == (expected, True, False), err


def test_a_time_that_no_clock_showed_is_told_as_that() -> None:
    assert (time_in_words(1e300), time_in_words(None)) == ("?", "")


def test_json_knows_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"loss": float("nan"), "all": [1.0, (float("inf"), "x")]})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "loss": "nan",
        "all": [1.0, ["inf", "x"]],
    }


def test_list_of_no_runs_says_how_to_begin(tmp_path: Path, rankfire: Rankfire) -> None:
    code, out, _ = rankfire("list", "--storage", str(tmp_path / "none"))
    assert (code, out.endswith("start one with rankfire run job.yaml\n")) == (0, True)


def test_status_says_how_it_stands_and_what_next(runs: Path, rankfire: Rankfire) -> None:
    code, out, _ = rankfire("status", "linear")
    assert code == 0
    assert out.splitlines()[0] == "run linear: completed, epoch 3, iteration 9"
    assert "next     rankfire checkpoints linear; rankfire export linear model.pt" in out
    _, out, _ = rankfire("status", "linear", "--json")
    assert json.loads(out)["state"] == "completed"


def test_show_has_timeline_checkpoints_and_faults(runs: Path, rankfire: Rankfire) -> None:
    code, out, _ = rankfire("show", "linear")
    timeline = out.partition("\ntimeline\n")[2].partition("\n\n")[0]
    assert code == 0
    assert "started from Python: there is no job file" in out
    assert timeline.split()[2] == "RUN_STARTED"
    assert "step-00000009  epoch 3" in out
    assert out.endswith("faults\n  none\n")


def test_show_as_json(runs: Path, rankfire: Rankfire) -> None:
    _, out, _ = rankfire("show", "linear", "--json")
    shown = json.loads(out)
    assert shown["timeline"][-1]["event"] == "RUN_COMPLETED"
    assert [one["name"] for one in shown["checkpoints"]][-1] == "step-00000009"
    assert (shown["spec"], shown["faults"]) == (None, [])


@pytest.mark.parametrize("command", ["status", "show", "logs", "stop", "resume", "checkpoints"])
def test_a_run_that_is_not_there_exits_2_and_names_one_that_is(command: str, runs: Path, rankfire: Rankfire) -> None:
    code, _, err = rankfire(command, "linaer")
    assert (code, err.splitlines()[-1].endswith("did you mean linear?")) == (2, True)


def test_logs_are_in_order_and_tagged_with_their_rank(runs: Path, rankfire: Rankfire) -> None:
    log(runs, "rank-0000", "rank 0", "hello", "hello")
    log(runs, "rank-0001", "rank 1", "hello")
    _, out, _ = rankfire("logs", "linear")
    told = [line.split(" ", 1)[1] for line in out.splitlines() if "hello" in line]
    assert told == ["rank 0  | hello", "rank 0  | hello", "rank 1  | hello"]
    _, out, _ = rankfire("logs", "linear", "--rank", "1", "--json")
    assert [json.loads(line)["who"] for line in out.splitlines()] == ["rank 1"]


def test_logs_of_the_driver_hold_the_epochs(runs: Path, rankfire: Rankfire) -> None:
    _, out, _ = rankfire("logs", "linear", "--driver", "--follow")  # it has ended: nothing is waited for
    begun, *epochs = [line.split("| ")[1].split("  ")[0] for line in out.splitlines()]
    assert begun.startswith("rankfire: run 'linear': 1 rank, in this process; what it keeps goes to ")
    assert epochs == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]


def test_logs_of_a_rank_that_never_was_exit_2(runs: Path, rankfire: Rankfire) -> None:
    log(runs, "rank-0000", "rank 0", "hello")
    code, _, err = rankfire("logs", "linear", "--rank", "7")
    assert (code, "(there are: 0), received rank 7; leave --rank out" in err) == (2, True)
    assert rankfire("logs", "linear", "--rank", "0", "--driver")[0] == 2


def test_stop_of_a_finished_run_says_so(runs: Path, rankfire: Rankfire) -> None:
    code, out, _ = rankfire("stop", "linear")
    assert (code, out) == (0, "run linear is not running (completed), so there is nothing to stop\n")


def test_stop_of_a_lost_run_names_the_way_on(runs: Path, rankfire: Rankfire) -> None:
    journal = runs / "linear" / "journal.jsonl"
    journal.write_bytes(b"\n".join(journal.read_bytes().splitlines()[:-1]) + b"\n")
    code, out, _ = rankfire("stop", "linear")
    assert (code, out.partition("; ")[2]) == (0, "rankfire resume linear goes on with it\n")


def test_stop_twice_tells_who_was_first_and_a_run_that_does_not_end_is_an_error(runs: Path, rankfire: Rankfire) -> None:
    lease = Lease(storage_at(runs / "linear"), "linear")
    lease.acquire(print)
    try:
        assert (
            rankfire("stop", "linear", "--no-wait")[1] == "run linear is asked to stop: it ends at its next iteration\n"
        )
        code, out, err = rankfire("stop", "linear", "--timeout", "0")
    finally:
        lease.release()
    assert "was asked to stop already, by " in out
    assert (code, "expected run 'linear' to end within 0 s, received it is stopping still" in err) == (3, True)


def test_resume_of_a_run_from_python_says_what_to_do(runs: Path, rankfire: Rankfire) -> None:
    code, _, err = rankfire("resume", "linear")
    assert (code, err.endswith("run its script again, which goes on from the newest checkpoint\n")) == (2, True)


LOOKS = [["list"], *([command, "linear"] for command in ("status", "show", "logs", "stop"))]


@pytest.mark.parametrize("arguments", LOOKS)
def test_looking_imports_neither_torch_nor_ray(arguments: list[str], runs: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(TOP)!r})
from orchestrator.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print(sorted({{"torch", "ray", "numpy"}} & set(sys.modules)), end.code, file=sys.stderr)
"""
    end = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert end.stderr == "[] 0\n"
