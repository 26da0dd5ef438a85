"""Workers that hold no rank: who is given up, and who is asked for, where ranks live but do not meet."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.journal import Journal
from orchestrator.lifecycle import Lifecycle
from orchestrator.loop import Loop
from orchestrator.ranks import Ranks
from orchestrator.reserves import Reserves
from orchestrator.spec import WorkersSpec
from tests.orchestrator.fake_group import FakeGroup
from workers.locations import storage_at
from workers.rank import Place


class Cluster(FakeGroup):
    """Workers who can be asked for; none comes."""

    def __init__(self) -> None:
        super().__init__(3)
        self.asked: dict[int, list[str]] = {}

    def add(self, worker: int, *, avoid: Collection[str] = (), gives_way: bool = False) -> None:
        self.asked[worker] = list(avoid)
        self.size += 1


def reserves_of(folder: Path, **workers: int) -> tuple[Reserves, Ranks, Cluster]:
    """Three ranks: worker 2 has rank 0, worker 0 rank 1, worker 1 rank 2; each on a node of its own."""
    cluster = Cluster()
    loop, journal = Loop(cluster, lambda error, facts: None), Journal(storage_at(folder))
    ranks = Ranks(loop, Lifecycle(), journal, world_size=3, start_timeout=1.0)
    ranks._started = 3
    loop.facts.ranks = {2: 0, 0: 1, 1: 2}
    loop.facts.places = {
        worker: Place(node=f"node-{worker}", host="host", address="127.0.0.1", pid=worker) for worker in range(3)
    }
    loop.suspects.add("node-x")
    return (
        Reserves(loop, ranks, WorkersSpec(count=3, **workers), patience=1.0, silence=1.0),
        ranks,
        cluster,
    )


def test_without_anybody_instead_one_is_asked_for_elsewhere_and_nobody_is_given_up(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reserves, _, cluster = reserves_of(tmp_path)
    assert reserves.instead_of_one([2, 0]) is None
    assert cluster.asked == {3: ["node-0", "node-x"]}
    assert reserves.instead_of_one([2, 0]) is None
    assert cluster.asked.keys() == {3}, "it is on its way"
    assert (
        "rankfire: ranks can't reach each other (as told by ranks 0-1): another worker is asked for"
        in capfd.readouterr().err
    )


def test_with_somebody_instead_the_last_of_those_who_did_not_meet_is_given_up(tmp_path: Path) -> None:
    reserves, ranks, cluster = reserves_of(tmp_path)
    ranks.spares.append(7)
    assert reserves.instead_of_one([1, 2, 0]) == 1
    assert reserves.instead_of_one([2, 0]) == 0
    assert cluster.asked == {}


def test_who_is_up_and_builds_is_waited_for_but_not_who_has_no_place_yet(tmp_path: Path) -> None:
    reserves, ranks, _ = reserves_of(tmp_path)
    assert reserves.instead_of_one([2, 0]) is None
    assert reserves.instead_of_one([2, 0]) is None
    ranks._loop.facts.places[3] = Place(node="node-3", host="host", address="127.0.0.1", pid=3)
    assert reserves.instead_of_one([2, 0]) == 0


def test_who_has_a_place_and_says_nothing_is_given_up_and_who_waits_for_room_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserves, ranks, cluster = reserves_of(tmp_path)
    now = [0.0]
    monkeypatch.setattr("orchestrator.reserves.time", SimpleNamespace(monotonic=lambda: now[0]))
    reserves.want(1)
    cluster.short = "0 CPU"
    for now[0] in (0.0, 0.9, 1.8):
        assert not reserves.give_up_silent()
    cluster.short = None
    now[0] = 2.7
    assert reserves.give_up_silent()
    assert ranks._loop.facts.lost == {3: "it has a place, and said nothing for 0.8 s"}


@pytest.mark.parametrize(("least", "given_up"), [(2, 1), (3, None)])
def test_where_fewer_may_go_on_nobody_is_needed_instead(tmp_path: Path, least: int, given_up: int | None) -> None:
    reserves, _, cluster = reserves_of(tmp_path, min=least)
    assert reserves.instead_of_one([1, 0]) == given_up
    assert bool(cluster.asked) == (given_up is None)
