"""Wall clocks that differ and jump: order is by number, and whoever waits looks at a clock that only goes forward."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.lease import Lease
from orchestrator.nodes import Nodes
from tests.recovery.jobs import Job
from tests.recovery.program import Fault
from tests.waiting import wait_until
from workers.locations import storage_at

HOUR = 3600.0


@pytest.fixture
def jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process the wall clock is an hour ahead at every second look."""
    true, looks = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: true() + HOUR * (next(looks) % 2))


@pytest.mark.usefixtures("jumps")
def test_a_run_does_not_mind_clocks_that_differ_and_jump(survives: Any) -> None:
    """The driver's jumps to and fro, that of one rank is an hour ahead; then the other rank is killed."""
    faults = [
        Fault(where="forward", iteration=3, rank=1, how="clock"),
        Fault(where="forward", iteration=11, rank=0, how="kill"),
    ]
    ended = survives(Job(faults=faults, recovery={"hang_timeout": 60.0}), fired=sorted(map(str, faults)), lost=[0])
    times = [line["time"] for line in ended.journal]
    assert any(later < earlier - HOUR / 2 for earlier, later in itertools.pairwise(times))
    assert ended.told("HANG_DETECTED") == []
    (recovered,) = ended.told("RECOVERED")
    assert 0.0 < recovered["seconds"] < HOUR / 2


@pytest.mark.usefixtures("jumps")
def test_a_lease_is_renewed_and_kept(tmp_path: Path) -> None:
    lease = Lease(storage_at(tmp_path), "run", ttl=0.5)
    lease.acquire(pytest.fail)
    wait_until(lambda: lease._me.beat >= 3, what="three renewals")
    lease.check()
    lease.release()


def test_the_time_that_is_left_to_a_node_does_not_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, now = Nodes(), time.time()
    told = {"node-a": (now + 600.0) * 1000.0, "node-b": 0.0}
    for ahead in (0.0, HOUR, -HOUR):
        monkeypatch.setattr(time, "time", lambda ahead=ahead: now + ahead)
        nodes._take_in_drains(told)
        left = nodes.draining()
        assert 0.0 < left["node-a"] <= 600.0
        assert left["node-b"] == math.inf
