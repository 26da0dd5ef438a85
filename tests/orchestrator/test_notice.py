"""What the user is told on the way."""

import io

import pytest

from orchestrator.notice import Steady, notice


def test_a_notice_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    notice("still waiting for rank 1 to build")
    assert capsys.readouterr() == ("", "rankfire: still waiting for rank 1 to build\n")


class Gone(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise ValueError("I/O operation on closed file")


@pytest.mark.parametrize("stream", [Gone(), None], ids=["gone", "closed"])
def test_what_nobody_reads_is_no_error(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    notice("still waiting for rank 1 to build")
    steady = Steady(stream)
    print("on", file=steady, flush=True)
    assert (steady.isatty(), steady.encoding) == (False, "utf-8")


def test_what_somebody_reads_is_written_and_told_of() -> None:
    stream = io.StringIO()
    print("on", file=Steady(stream))
    assert stream.getvalue() == "on\n"
