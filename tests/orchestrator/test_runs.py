"""How runs stand, told by their folders."""

import json
import time

import pytest

from orchestrator.errors import SystemFailure
from orchestrator.lease import Lease
from orchestrator.runs import events_of, look_at, runs_in
from orchestrator.stopping import request_stop
from workers.locations import storage_at
from workers.storage import Storage


def line(event: str, **more: object) -> bytes:
    content = {"event": event, "time": 1000.0, "generation": 0, "epoch": 2, "iteration": 20, **more}
    return json.dumps(content).encode() + b"\n"


def run_with(storage: Storage, run: str, *lines: bytes) -> Storage:
    home = storage.child(run)
    home.claim("journal.jsonl" if storage.moves else "journal/00000001-000000.jsonl", b"".join(lines))
    return home


@pytest.mark.parametrize(
    ("last", "state", "reason"),
    [
        (line("RUN_COMPLETED", status="completed"), "completed", ""),
        (line("RUN_COMPLETED", already=True), "completed", ""),
        (line("RUN_COMPLETED", status="terminated", reason="enough"), "terminated", "enough"),
        (line("RUN_INTERRUPTED"), "interrupted", ""),
        (line("RUN_FAILED", error="TrainingError", text="boom"), "failed", "boom"),
        (line("EPOCH_COMPLETED"), "lost", ""),
        (line("RUN_COMPLETED", status="completed") + line("RUN_STARTED"), "lost", ""),
        (line("RUN_FAILED", text="boom") + b'{"event": "RUN_ST', "failed", "boom"),
    ],
)
def test_the_end_of_the_journal_tells_how_it_ended(storage: Storage, last: bytes, state: str, reason: str):
    seen = look_at(run_with(storage, "digits", line("RUN_STARTED"), last))
    assert (seen.run, seen.state, seen.reason, seen.epoch, seen.iteration) == ("digits", state, reason, 2, 20)


def test_a_long_journal_is_read_from_its_end(tmp_path):
    home = run_with(storage_at(tmp_path), "digits", *[line("EPOCH_COMPLETED", text="x" * 200)] * 1000)
    assert look_at(home).state == "lost"
    run_with(storage_at(tmp_path), "other", *[line("EPOCH_COMPLETED", text="x" * 200)] * 1000, line("RUN_INTERRUPTED"))
    assert look_at(storage_at(tmp_path).child("other")).state == "interrupted"


def test_an_owner_that_lives_runs_it_and_stops_when_asked(tmp_path):
    home = run_with(storage_at(tmp_path), "digits", line("RUN_STARTED"))
    lease = Lease(home, "digits")
    lease.acquire(print)
    try:
        seen = look_at(home)
        assert (seen.state, seen.lives, seen.token) == ("running", True, 1)
        assert "pid" in seen.owner
        request_stop(home, seen.token)
        assert look_at(home).state == "stopping"
    finally:
        lease.release()
    assert look_at(home).state == "lost"


def test_an_owner_elsewhere_counts_as_gone_when_it_is_silent(tmp_path):
    home = run_with(storage_at(tmp_path), "digits", line("RUN_STARTED"))
    owner = {
        "who": "w", "host": "h", "pid": 1, "machine": "another", "born": "1", "since": 0.0, "ttl": 15.0,
    }  # fmt: skip
    home.claim("lease/00000001.json", json.dumps(owner).encode())
    assert look_at(home).state == "running"
    import os

    long_ago = time.time() - 1000
    os.utime(tmp_path / "digits" / "lease" / "00000001.json", (long_ago, long_ago))
    assert look_at(home).state == "lost"


def test_runs_are_listed_and_what_is_none_is_not(storage: Storage):
    run_with(storage, "old", line("RUN_COMPLETED", time=1.0))
    run_with(storage, "new", line("RUN_COMPLETED", time=2.0))
    storage.claim("stranger/readme.txt", b"x")
    assert [run.run for run in runs_in(storage)] == ["new", "old"]


def test_a_run_that_did_not_begin_is_new(tmp_path):
    storage_at(tmp_path).claim("digits/spec.yaml", b"run: digits\n")
    [seen] = runs_in(storage_at(tmp_path))
    assert (seen.state, seen.changed) == ("new", None)
    assert list(events_of(storage_at(tmp_path).child("digits"))) == []


def test_a_storage_that_can_not_be_read_is_an_error_of_the_system(tmp_path):
    home = storage_at(tmp_path).child("digits")
    (tmp_path / "digits" / "journal.jsonl").mkdir(parents=True)
    with pytest.raises(SystemFailure, match=r"run 'digits': .*digits can't be read: Is a directory"):
        look_at(home)
