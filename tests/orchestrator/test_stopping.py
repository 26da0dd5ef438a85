"""Requests to stop a run: heard by the owner that is meant, once, and by no later one."""

import threading

from orchestrator.stopping import Heeding, asked_to_stop, request_stop
from tests.waiting import wait_until
from workers.storage import Storage


def test_the_owner_that_is_meant_stops_once(durable: Storage, capsys):
    stopped: list[str] = []
    with Heeding(durable, 3, lambda: stopped.append("stop")) as heeding:
        assert request_stop(durable, 3) is None
        wait_until(lambda: stopped, timeout=20, what="the request is heeded")
        heeding._thread.join(10)
    assert stopped == ["stop"]
    assert "asked to stop: stopping at the next iteration" in capsys.readouterr().err
    assert durable.names("stop") == []


def test_a_second_request_tells_who_was_first(storage: Storage):
    assert request_stop(storage, 7) is None
    assert "@" in (request_stop(storage, 7) or "")
    assert asked_to_stop(storage, 7) == request_stop(storage, 7)


def test_a_request_that_came_too_late_does_not_stop_the_next_owner(storage: Storage):
    request_stop(storage, 1)
    assert asked_to_stop(storage, 2) is None


def test_a_request_that_nobody_can_read_is_a_request(storage: Storage):
    storage.claim("stop/00000001.json", b"garbage")
    assert asked_to_stop(storage, 1) == "somebody"


def test_a_storage_that_stumbles_is_asked_again(tmp_path):
    from workers.locations import storage_at

    (tmp_path / "stop").mkdir()
    (tmp_path / "stop" / "00000001.json").mkdir()  # reading it is an error of the system
    stopped = threading.Event()
    with Heeding(storage_at(tmp_path), 1, stopped.set):
        assert not stopped.is_set()
        (tmp_path / "stop" / "00000001.json").rmdir()
        request_stop(storage_at(tmp_path), 1)
        wait_until(stopped.is_set, what="the request is heeded")
