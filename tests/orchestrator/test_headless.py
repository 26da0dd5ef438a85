"""The head of the cluster is gone: the run stops and saves as after Ctrl-C, and ends with an error of the system."""

import pytest

from orchestrator.errors import HeadLostError, exit_code_of
from orchestrator.exchange import HeadLost
from tests.orchestrator.conftest import MakeRun, lines_of
from tests.orchestrator.fake_group import FakeGroup
from workers.orders import Build, CutAt, Go, Order, ProposeCut, Release

TEXT = r"cluster: expected its head \(GCS\) to answer at 10\.0\.0\.1:6379, received nothing for 25 s; "


def lost(left: float) -> HeadLost:
    return HeadLost(address="10.0.0.1:6379", silence=25.0, left=left)


def test_ranks_that_train_stop_at_a_cut_where_they_are_saved(
    make_run: MakeRun, capfd: pytest.CaptureFixture[str]
) -> None:
    group = FakeGroup(2)
    group.scripts[Go] = lambda worker, _: group.tell(lost(left=60.0)) if worker else None
    run = make_run(group)
    saves: list[bool] = []
    run.stand = lambda: saves.append(run.interrupted)  # where the orchestrator saves
    with pytest.raises(HeadLostError, match=TEXT) as ended:
        run.execute(None)
    assert exit_code_of(ended.value) == 3
    assert saves == [True]
    assert [order.then for order in group.ordered(Release)] == ["interrupt"]
    line = next(line for line in lines_of(run) if line["event"] == "HEAD_LOST")
    assert (line["address"], line["seconds"]) == ("10.0.0.1:6379", 25.0)
    assert "rankfire: the cluster's head at 10.0.0.1:6379 has been silent for 25 s" in capfd.readouterr().err


def test_ranks_that_start_are_not_waited_for(make_run: MakeRun) -> None:
    group = FakeGroup(2)
    group.scripts[Build] = lambda worker, _: group.tell(lost(left=60.0)) if worker == 1 else None
    with pytest.raises(HeadLostError, match=TEXT):
        make_run(group).execute(None)


@pytest.mark.parametrize("silent", [ProposeCut, CutAt])
def test_ranks_that_do_not_stop_in_time_are_not_waited_for(make_run: MakeRun, silent: type[Order]) -> None:
    group = FakeGroup(2)
    group.scripts[Go] = lambda worker, _: group.tell(lost(left=0.0)) if worker else None
    group.scripts[silent] = lambda worker, _: None
    with pytest.raises(HeadLostError, match=TEXT):
        make_run(group).execute(None)
    assert len(group.ordered(ProposeCut)) == 1
