"""What the user is told on the way."""

import pytest

from orchestrator.notice import notice


def test_a_notice_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    notice("still waiting for rank 1 to build")
    assert capsys.readouterr() == ("", "rankfire: still waiting for rank 1 to build\n")
