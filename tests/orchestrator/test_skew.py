"""Workers that have other versions than the driver: refused or told, before anything is built."""

from __future__ import annotations

import pytest

from orchestrator.errors import StartError
from orchestrator.skew import check_same, other_versions
from tests.orchestrator.conftest import MakeRun, lines_of
from tests.orchestrator.fake_group import FakeGroup
from workers.messages import Hello
from workers.orders import Build
from workers.rank import Place
from workers.versions import installed

PLACE = Place(node="node-a", host="host", address="127.0.0.1", pid=7)


class Skewed(FakeGroup):
    """The second worker comes from an older image."""

    versions = {"rankfire": "0.0.1"}  # noqa: RUF012 - of a test

    def hello(self, worker: int) -> None:
        here = installed("rankfire", "torch")
        self.send(Hello, worker, place=PLACE, versions=here | (self.versions if worker == 1 else {}))


class OlderTorch(Skewed):
    """It has another torch only."""

    versions = {"torch": "2.0.0"}  # noqa: RUF012


def test_a_worker_with_another_version_of_ours_ends_the_start(make_run: MakeRun) -> None:
    run = make_run(group := Skewed(2))
    with pytest.raises(StartError) as raised:
        run.execute(None)
    here = installed("rankfire")["rankfire"]
    assert str(raised.value) == (
        f"worker on pid 7 on node node-a (host): expected rankfire {here}, as the driver has it, received rankfire "
        "0.0.1; install the same version on all nodes, best from one image"
    )
    assert group.ordered(Build) == []


def test_another_torch_is_told_and_trains(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(OlderTorch(2))
    run.execute(None)
    (line,) = [line for line in lines_of(run) if line["event"] == "VERSIONS_DIFFER"]
    here = installed("torch")["torch"]
    assert (line["worker"], line["text"]) == (1, f"torch 2.0.0 instead of {here}")
    assert f"has torch 2.0.0 instead of {here}; results may differ" in capsys.readouterr().err


def test_the_same_versions_are_nothing_to_tell() -> None:
    here = installed("rankfire", "torch")
    check_same(PLACE, here)
    assert other_versions(here) is None
    check_same(PLACE, {})  # of the driver's own process
    assert other_versions({}) is None
