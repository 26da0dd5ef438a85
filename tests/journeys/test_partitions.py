"""Networks that break, between machines that are pretended: who can't be reached is replaced, and never heard again.

Whole runs, whose driver is on host a with the head of a real Ray; only with `RANKFIRE_FAULTS=all`, and as root.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import Evaluate, Orchestrator
from orchestrator.checkpoints.registry import Registry
from orchestrator.checkpoints.verify import problems
from orchestrator.journal import read_journal
from tests.conftest import CLUSTER_NUMBERS, FAST_HEALTH_CHECK
from tests.journeys import stochastic
from tests.network import Network, RayNetwork, why_not
from tests.process_ranks import ProcessGroup
from tests.waiting import wait_until
from workers import Events, Worker
from workers.locations import storage_at
from workers.stacks import state_of

ALL = os.environ.get("RANKFIRE_FAULTS") == "all"
WHY_NOT = why_not() if ALL else "takes half a minute; RANKFIRE_FAULTS=all has it run"
pytestmark = [pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or ""), pytest.mark.timeout(500)]


def attach(orchestrator: Orchestrator) -> None:
    """The driver's side of the job file: at the end of some epochs all ranks wait for a word of the test."""
    stochastic.attach(orchestrator)
    folder = Path(orchestrator.settings.config["folder"])
    for epoch, word in orchestrator.settings.config["words"].items():

        @orchestrator.on(Events.EPOCH_COMPLETED(once=int(epoch)))
        def hold(run: Orchestrator, word: str = word) -> None:
            def given() -> bool:
                run.call(nothing)  # the loop turns while it is asked
                return (folder / word).exists()

            (folder / f"{word}?").touch()
            wait_until(given, what=f"the word {word!r}", timeout=200)


def nothing(worker: Worker) -> None:
    pass


class Training:
    """`rankfire run` on host a, and what its journal tells."""

    def __init__(self, cluster: RayNetwork, folder: Path, words: Mapping[int, str], **given: Any) -> None:
        self.folder, self.cluster, self.network = folder, cluster, cluster.network
        config = {"digest": str(folder / "digest.json"), "folder": str(folder), **given.pop("config", {})}
        job = {
            "run": "job",
            "program": "tests.journeys.stochastic:build",
            "handlers": "tests.journeys.test_partitions:attach",
            "config": {**config, "words": {str(epoch): word for epoch, word in words.items()}},
            "train": {"max_epochs": 6},
            "evaluate": {"engine": "evaluator"},
            "checkpoint": {"every": 1},
            "storage": str(folder / "runs"),
            "cluster": {"insecure": True},  # in networks that nobody but this test reaches
            **given,
        }
        (folder / "job.yaml").write_text(yaml.safe_dump(job))
        command = [sys.executable, "-m", "orchestrator", "run", str(folder / "job.yaml")]
        self.process = cluster.run(cluster.head, command, folder / "said", PYTHONPATH=os.getcwd())

    def until_asked(self, word: str) -> None:
        """Wait until all ranks wait for a word."""
        wait_until(lambda: self._alive() and (self.folder / f"{word}?").exists(), what=f"{word!r}", timeout=120)

    def say(self, word: str) -> None:
        (self.folder / word).touch()

    def until(self, event: str, timeout: float = 120) -> dict[str, Any]:
        """Wait for a line of the journal."""
        return wait_until(lambda: self._alive() and self.lines(event), what=event, timeout=timeout)[0]

    def lines(self, event: str) -> list[dict[str, Any]]:
        return [line for line in read_journal(self.folder / "runs" / "job" / "journal.jsonl") if line["event"] == event]

    def ranks(self) -> dict[str, int]:
        """Host → the process that is a rank there; those that have ended are on none."""
        pids = {line["rank"]: int(line["pid"]) for line in self.lines("WORKER_JOINED")}
        return {str(self.network.host_of(pid)): pid for pid in pids.values()}

    @property
    def said(self) -> str:
        """What it has said so far."""
        return (self.folder / "said").read_text()

    def must_equal(self, calm: list[str]) -> None:
        """It ends well, with the bits of the run in which nothing happened; all that it committed is whole."""
        assert self.process.wait(200) == 0
        assert json.loads((self.folder / "digest.json").read_text())["digests"] == calm
        registry = Registry(storage_at(self.folder / "runs" / "job" / "checkpoints"))
        told = [line["checkpoint"] for line in self.lines("CHECKPOINT_COMMITTED")]
        kept = registry.committed()
        assert [one.name for one in kept] == told[-len(kept) :]
        assert [wrong for one in kept for wrong in problems(one.storage, one.manifest)] == []
        assert len({line["token"] for line in self.lines("RUN_STARTED")}) == 1

    def _alive(self) -> bool:
        assert self.process.poll() is None, "it has ended"
        return True


@contextlib.contextmanager
def training(
    cpus: Mapping[str, int], root: Path, folder: Path, words: Mapping[int, str], fast: bool = True, **given: Any
) -> Iterator[Training]:
    """A run on hosts with so many CPUs, whose Ray is quick, or slow, to take a node for dead; shows what it said."""
    health = {f"RAY_health_check_{name}": value for name, value in FAST_HEALTH_CHECK.items()} if fast else {}
    place = root / f"n{next(CLUSTER_NUMBERS)}"
    with Network("".join(cpus)) as network, RayNetwork(network, cpus, place, health).running() as cluster:
        run = Training(cluster, folder, words, workers={"count": 2, "placement": "STRICT_SPREAD"}, **given)
        try:
            yield run
        finally:
            run.process.kill()
            run.process.wait()
            print(run.said, *run.lines("WORKER_LOST"), *run.lines("RECOVERED"), sep="\n")


@pytest.fixture
def calm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Gives the digests of a run in which nothing happens, of two processes on this machine."""

    def digests_of(**config: Any) -> list[str]:
        with monkeypatch.context() as patch:
            patch.setattr("orchestrator.training.RayGroup", ProcessGroup)
            patch.setattr(ProcessGroup, "made", [])
            quiet = Orchestrator(stochastic.build, run="calm", workers=2, config=config, storage=tmp_path / "calm")
            quiet.attach(Evaluate("evaluator"))
            found: list[str] = []
            quiet.on(Events.COMPLETED)(lambda run: found.extend(run.call(stochastic.digest)))
            quiet.run(max_epochs=6)
            return found

    return digests_of


def gone(pid: int) -> bool:
    return state_of(pid) in {"", "Z"}


@pytest.fixture(params=[True, False], ids=["fast", "slow"])
def cut_off(tmp_path: Path, private_root: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Training, str, int]]:
    """A run of two ranks on three hosts, of which one with a rank has just been cut off: run, host, process."""
    words, recovery = {2: "cut", 4: "end"}, {"hang_timeout": 20}
    hosts = {"a": 1, "b": 1, "c": 1}
    with training(hosts, private_root, tmp_path, words, request.param, recovery=recovery) as run:
        run.until_asked("cut")
        host, pid = next((host, pid) for host, pid in run.ranks().items() if host != run.cluster.head)
        run.network.cut(host)
        run.say("cut")
        yield run, host, pid


quickly = pytest.mark.parametrize("cut_off", [True], indirect=True)
slowly = pytest.mark.parametrize("cut_off", [False], indirect=True)
CutOff = tuple[Training, str, int]
Calm = Callable[..., list[str]]


@quickly
def test_a_node_that_is_cut_off_is_replaced_and_changes_nothing_when_it_is_back(cut_off: CutOff, calm: Calm) -> None:
    run, host, stale = cut_off
    raylet = run.cluster.raylet(host)
    run.until("RECOVERED")
    assert not gone(stale), "nobody could tell it that it was replaced"
    run.network.heal(host)
    wait_until(lambda: gone(stale) and gone(raylet.pid), timeout=60, what="the end of what was cut off")
    assert set(run.ranks()) == set(run.network.hosts) - {host}
    run.say("end")
    run.must_equal(calm())
    assert [line["pid"] for line in run.lines("WORKER_LOST")] == [stale]


@slowly
def test_a_node_that_stays_cut_off_is_replaced_without_a_verdict_of_the_cluster_and_its_rank_ends_itself(
    cut_off: CutOff, calm: Calm
) -> None:
    run, _, stale = cut_off
    run.until("RECOVERED")
    assert not gone(stale)
    wait_until(lambda: gone(stale), timeout=120, what="the end of a rank that hears nobody")
    run.say("end")
    run.must_equal(calm())
    assert [line["pid"] for line in run.lines("WORKER_LOST")] == [stale]


@slowly
def test_a_node_that_is_back_before_anybody_gave_it_up_is_still_a_member(cut_off: CutOff, calm: Calm) -> None:
    run, host, _ = cut_off
    before = run.network.repeated(host)
    wait_until(lambda: run.network.repeated(host) > before + 1, timeout=60, what="packets that get lost")
    run.network.heal(host)
    run.say("end")
    run.must_equal(calm())
    assert run.lines("WORKER_LOST") == []
    assert len(run.lines("WORKER_JOINED")) == 2


def test_ranks_that_can_not_reach_each_other_for_a_while_meet_again(
    tmp_path: Path, private_root: Path, calm: Calm
) -> None:
    with training({"a": 0, "b": 1, "c": 1}, private_root, tmp_path, {2: "cut", 4: "end"}) as run:
        run.until_asked("cut")
        links = run.network.links("b", "c")
        assert links > 0
        run.network.part("bc")
        run.say("cut")
        wait_until(lambda: run.network.links("b", "c") < links, timeout=60, what="the end of the ranks' links")
        run.network.join("bc")
        run.until("RECOVERED")
        run.say("end")
        run.must_equal(calm())
        assert run.lines("WORKER_LOST") == []


def test_of_ranks_that_can_not_reach_each_other_one_is_replaced(tmp_path: Path, private_root: Path, calm: Calm) -> None:
    hosts, recovery = {"a": 0, "b": 1, "c": 1, "d": 1}, {"hang_timeout": 50}
    with training(hosts, private_root, tmp_path, {2: "cut", 4: "end"}, recovery=recovery) as run:
        run.until_asked("cut")
        pair = run.ranks()
        run.network.part("".join(pair))
        run.say("cut")
        run.until("RECOVERED")
        run.say("end")
        run.must_equal(calm())
        assert "ranks can't reach each other" in run.said
        assert [line["pid"] in pair.values() for line in run.lines("WORKER_LOST")] == [True]


def test_a_slow_network_takes_nobody_for_dead(tmp_path: Path, private_root: Path, calm: Calm) -> None:
    config = {"width": 512}
    with training({"a": 1, "b": 1}, private_root, tmp_path, {2: "slow"}, config=config) as run:
        run.until_asked("slow")
        run.network.slow("b", "1mbit")
        run.say("slow")
        run.must_equal(calm(**config))
        assert run.network.slowed("b") > 1000
        assert run.lines("WORKER_LOST") == run.lines("HANG_DETECTED") == run.lines("RECOVERED") == []
