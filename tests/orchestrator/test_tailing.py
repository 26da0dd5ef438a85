"""Reading logs: all processes by time, one rank, what is new, what is damaged."""

import pytest

from orchestrator.errors import SpecError
from orchestrator.tailing import LogReader
from workers.logs import Form, Line, LineLog, LogPlace
from workers.storage import Storage


def log_of(home: Storage, name: str, who: str, *lines: tuple[float, str], form: Form = "plain") -> None:
    content = b"".join(Line(time=when, who=who, stream="out", text=text).written(form) for when, text in lines)
    path = f"logs/{name}.log" if home.moves else f"logs/{name}/0000000000001-1-000000.log"
    before = home.read(path) if home.exists(path) else b""
    (home.replace if before else home.claim)(path, before + content)


def told(reader: LogReader) -> list[str]:
    return [f"{line.who}: {line.text}" for line in reader.lines()]


def test_lines_of_all_are_in_the_order_of_time_whatever_their_form(storage: Storage):
    log_of(storage, "rank-0000", "rank 0", (1.0, "a"), (3.0, "c"))
    log_of(storage, "rank-0001", "rank 1", (2.0, "b"), form="json")
    log_of(storage, "driver", "driver", (2.5, "between"))
    assert told(LogReader(storage)) == ["rank 0: a", "rank 1: b", "driver: between", "rank 0: c"]


def test_only_what_is_new_is_told_again(storage: Storage):
    log_of(storage, "rank-0000", "rank 0", (1.0, "a"))
    reader = LogReader(storage)
    assert [told(reader), told(reader)] == [["rank 0: a"], []]
    log_of(storage, "rank-0000", "rank 0", (2.0, "b"))
    log_of(storage, "rank-0001", "rank 1", (3.0, "c"))
    assert told(reader) == ["rank 0: b", "rank 1: c"]


def test_one_rank_or_the_driver_alone(storage: Storage):
    log_of(storage, "rank-0000", "rank 0", (1.0, "a"))
    log_of(storage, "rank-0001", "rank 1", (2.0, "b"))
    log_of(storage, "driver", "driver", (3.0, "c"))
    assert told(LogReader(storage, rank=1)) == ["rank 1: b"]
    assert told(LogReader(storage, driver=True)) == ["driver: c"]


def test_a_rank_that_never_was_is_told_with_those_that_were(storage: Storage):
    log_of(storage, "rank-0000", "rank 0", (1.0, "a"))
    with pytest.raises(SpecError, match=r"\(there are: 0\), received rank 7; leave --rank out to read all"):
        LogReader(storage, rank=7)


def test_the_beginning_of_a_line_waits_for_its_end_and_garbage_is_shown(tmp_path):
    (tmp_path / "logs").mkdir()
    file = tmp_path / "logs" / "rank-0000.log"
    whole = Line(time=1.0, who="rank 0", stream="out", text="whole").written("plain")
    file.write_bytes(b"garbage\n" + whole[:10])
    from workers.locations import storage_at

    reader = LogReader(storage_at(tmp_path))
    assert told(reader) == ["rank-0000: garbage"]
    file.write_bytes(b"garbage\n" + whole)
    assert told(reader) == ["rank 0: whole"]


def test_what_was_logged_is_read(durable: Storage):
    log = LineLog(LogPlace(home=durable.url), "driver", "driver")
    log.take("err", "äöü | and a bar")
    log.close()
    assert told(LogReader(durable)) == ["driver: äöü | and a bar"]
