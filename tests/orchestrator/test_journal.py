"""The run's record: what a line holds, and what is left of it after a power cut or beside a second writer."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.journal import Journal, read_journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.jsonl")
    yield journal
    journal.close()


def test_every_line_tells_event_time_generation_epoch_and_iteration(journal: Journal) -> None:
    journal.start()
    journal.epoch, journal.iteration = 2, 200
    journal.write("WORKER_JOINED", rank=1, pid=77, node="n")
    (line,) = read_journal(journal.path)
    assert line.pop("time") > 1.7e9
    assert line == {
        "event": "WORKER_JOINED", "generation": 0, "epoch": 2, "iteration": 200, "rank": 1, "pid": 77, "node": "n",
    }  # fmt: skip


def test_lines_stay_in_the_order_in_which_they_were_written_over_restarts(journal: Journal) -> None:
    for number in range(3):
        journal.start()
        journal.write("RUN_STARTED", number=number)
        journal.close()
    assert [line["number"] for line in read_journal(journal.path)] == [0, 1, 2]


def test_values_that_json_does_not_know_become_their_names(journal: Journal) -> None:
    journal.start()
    value = {"loss": float("nan"), "best": [float("inf"), -float("inf"), (1, None, True)], 3: Path("a")}
    journal.write("NOTE", value=value)
    text = journal.path.read_text()
    assert json.loads(text, parse_constant=pytest.fail)["value"] == {
        "loss": "nan",
        "best": ["inf", "-inf", [1, None, True]],
        "3": "a",
    }


def test_a_journal_that_was_not_started_writes_nothing(journal: Journal) -> None:
    journal.write("NOTE")
    assert not journal.path.exists()


def test_closing_twice_is_closing_once(journal: Journal) -> None:
    journal.start()
    journal.close()
    journal.close()
    journal.write("NOTE")
    assert journal.path.read_text() == ""


@pytest.mark.parametrize("torn", ['{"event": "EPOCH_COMP', "{", '{"event": "COMPLETED"}'])
def test_a_torn_last_line_is_cut_off(journal: Journal, torn: str) -> None:
    journal.path.write_text('{"event": "RUN_STARTED"}\n' + torn)
    assert [line["event"] for line in read_journal(journal.path)] == ["RUN_STARTED"]
    journal.start()
    journal.write("RESUMED")
    assert [line["event"] for line in read_journal(journal.path)] == ["RUN_STARTED", "RESUMED"]
    assert len(journal.path.read_text().splitlines()) == 2


def test_a_journal_that_is_one_torn_line_begins_anew(journal: Journal) -> None:
    journal.path.write_text('{"event"')
    journal.start()
    assert journal.path.read_text() == ""


def test_a_second_writer_is_refused(journal: Journal) -> None:
    journal.start()
    second = Journal(journal.path)
    with pytest.raises(BlockingIOError):
        second.start()
    second.write("NOTE")
    assert journal.path.read_text() == ""


def test_a_second_process_is_refused_until_the_first_is_gone(journal: Journal) -> None:
    journal.start()
    code = "import sys; from pathlib import Path; from orchestrator.journal import Journal; Journal(Path(sys.argv[1]))"
    command = [sys.executable, "-c", f"{code}.start()", str(journal.path)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    journal.close()
    accepted = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "BlockingIOError" in refused.stderr
    assert (refused.returncode, accepted.returncode) == (1, 0)


def test_a_journal_is_its_owners_alone(journal: Journal) -> None:
    journal.start()
    assert journal.path.stat().st_mode & 0o777 == 0o600
