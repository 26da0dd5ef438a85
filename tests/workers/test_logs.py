"""What a process prints, line by line: whose it is, in which form, and that none is lost or merged."""

import io
import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.locations import storage_at
from workers.logs import HELD, LONGEST, Line, LineLog, LogPlace, Tee
from workers.storage import Storage


def texts(path: Path) -> list[str]:
    lines = [Line.read(line) for line in path.read_bytes().splitlines()]
    assert None not in lines
    return [f"{line.who} {line.stream}: {line.text}" for line in lines if line is not None]


@given(
    st.floats(0, 4e9).map(lambda seconds: round(seconds, 6)),
    st.sampled_from(["driver", "rank 3", "spare 12"]),
    st.sampled_from(["out", "err"]),
    st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"])),
)
@pytest.mark.parametrize("form", ["plain", "json"])
def test_a_line_is_read_back_as_it_was_written(form, time, who, stream, text):
    line = Line(time=time, who=who, stream=stream, text=text)
    written = line.written(form)

    assert written.count(b"\n") == 1
    read = Line.read(written)
    assert read is not None
    assert (read.who, read.stream, read.text) == (who, stream, text)
    assert read.time == pytest.approx(time, abs=2e-6)


@pytest.mark.parametrize("torn", [b"", b"2026-11", b'{"time": 1', b'{"time": 1}', b"[1]", b"\xff\xfe"])
def test_a_torn_line_is_none(torn):
    assert Line.read(torn) is None


def test_lines_go_to_the_file_of_the_rank_and_on_to_the_stream(tmp_path):
    log, before = LineLog(LogPlace(home=str(tmp_path))), io.StringIO()
    out = Tee(before, "out", log)
    print("before its rank is known", file=out)
    log.belong_to("rank-0003", "rank 3")
    print("a", "b", file=out)
    Tee(None, "err", log).write("no end")
    out.write("first half, ")
    out.write("second half\nrest")
    out.finish()
    log.close()

    path = tmp_path / "logs" / "rank-0003.log"
    assert texts(path) == [
        "rank 3 out: before its rank is known",
        "rank 3 out: a b",
        "rank 3 out: first half, second half",
        "rank 3 out: rest",
    ]
    assert before.getvalue() == "before its rank is known\na b\nfirst half, second half\nrest"
    assert [path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777] == [0o600, 0o700]


def test_identical_lines_of_many_threads_are_all_there(tmp_path):
    log = LineLog(LogPlace(home=str(tmp_path), form="json"), "driver", "driver")

    def shout():
        tee = Tee(io.StringIO(), "out", log)
        for _ in range(250):
            print("same", file=tee)

    threads = [threading.Thread(target=shout) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    lines = (tmp_path / "logs" / "driver.log").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["same"] * 2000


def test_a_newcomer_appends_to_what_the_lost_rank_had_printed(tmp_path):
    for text in ("the first", "its successor"):
        log = LineLog(LogPlace(home=str(tmp_path)), "rank-0001", "rank 1")
        log.take("out", text)
        log.close()
    assert texts(tmp_path / "logs" / "rank-0001.log") == ["rank 1 out: the first", "rank 1 out: its successor"]


def test_bars_and_colours_of_terminals_are_told_as_text(tmp_path):
    log = LineLog(LogPlace(home=str(tmp_path)), "driver", "driver")
    print("10 %\r100 %", file=Tee(None, "err", log))
    print("\x1b[31mred\x1b[0m", file=Tee(None, "err", log))
    assert texts(tmp_path / "logs" / "driver.log") == ["driver err: 100 %", "driver err: red"]
    log.close()


def test_a_line_without_end_does_not_fill_the_memory(tmp_path):
    log = LineLog(LogPlace(home=str(tmp_path)), "driver", "driver")
    tee = Tee(None, "out", log)
    tee.write("x" * (2 * LONGEST + 1))
    tee.finish()
    log.close()
    assert [len(text.removeprefix("driver out: ")) for text in texts(tmp_path / "logs" / "driver.log")] == [
        LONGEST,
        LONGEST,
        1,
    ]


def test_what_waits_for_a_rank_is_bounded(tmp_path):
    log = LineLog(LogPlace(home=str(tmp_path)))
    for number in range(HELD + 5):
        log.take("out", str(number))
    log.belong_to("rank-0000", "rank 0")
    log.close()
    told = texts(tmp_path / "logs" / "rank-0000.log")
    assert (told[0], len(told)) == ("rank 0 out: 5", HELD)


def test_a_log_that_can_not_be_written_ends_no_training(tmp_path):
    (tmp_path / "logs").write_text("in the way")
    log = LineLog(LogPlace(home=str(tmp_path)), "rank-0000", "rank 0")
    log.take("out", "nobody hears it")
    log.close()


def test_a_link_where_the_log_should_be_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank-0000.log").symlink_to(tmp_path / "victim")
    log = LineLog(LogPlace(home=str(tmp_path)), "rank-0000", "rank 0")
    log.take("out", "not there")
    log.close()
    assert (tmp_path / "victim").read_text() == "mine"


def test_secrets_of_the_environment_are_not_logged(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "canary-of-a-secret")
    log = LineLog(LogPlace(home=str(tmp_path)), "driver", "driver")
    print("token is canary-of-a-secret", file=Tee(None, "out", log))
    log.close()
    assert texts(tmp_path / "logs" / "driver.log") == ["driver out: token is ***"]


def test_an_object_store_has_all_lines_after_the_end(durable: Storage):
    home = durable.child("digits")
    log = LineLog(LogPlace(home=home.url, form="json"), "rank-0000", "rank 0")
    for number in range(100):
        log.take("out", str(number))
    log.close()
    paths = [path for path in storage_at(home.url).files("logs")]
    content = b"".join(home.read(f"logs/{path}") for path in paths)
    assert [json.loads(line)["text"] for line in content.splitlines()] == [str(number) for number in range(100)]
