"""Minutes of training on several Ray nodes in which something is killed or stopped every few seconds.

What comes out is what comes out of as many epochs in which nothing happens. Too long for every day: `make chaos` runs
it for ten minutes; `RANKFIRE_SOAK` says for how many seconds, `RANKFIRE_SEED` what happens.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator import Checkpoint, Evaluate, Orchestrator
from orchestrator.checkpoints.registry import Registry
from orchestrator.checkpoints.verify import problems
from orchestrator.journal import read_journal
from tests.conftest import RayNodes
from tests.journeys import stochastic
from tests.waiting import wait_until
from workers import Events
from workers.locations import storage_at

SECONDS = float(os.environ.get("RANKFIRE_SOAK", "0"))
SEED = int(os.environ.get("RANKFIRE_SEED", "20"))
APART = (1.0, 6.0)  # seconds between two strikes
ROUTE = 4  # iterations between two strikes at least: an iteration that fails three times ends the run
PAUSE = 0.05  # seconds of an iteration
CPUS = 2  # of a node beside the head
NODES = 2  # that are left in any case, beside the head


@dataclass
class Soak:
    """One run, and what happened to it.

    Args:
        folder: of the run.
        cluster: in which it trains.
        struck: what was done, by kind.
        gone: processes that were ended.
    """

    folder: Path
    cluster: RayNodes
    struck: Counter[str] = field(default_factory=Counter)
    gone: list[int] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)

    def run(self, *, pause: float, epochs: int, strike: Striker | None = None) -> Soak:
        """Train, until the striker has had enough."""
        orchestrator = Orchestrator(
            stochastic.build,
            run="soak",
            workers={"count": 2, "spares": 1, "cpus": 1, "placement": "SPREAD"},
            cluster={"address": self.cluster.address},
            storage=self.folder,
            config={"loader_workers": 1, "pause": pause},
            recovery={
                "hang_timeout": 10.0,
                "restarts": {"crash": 10_000, "hang": 10_000, "network": 10_000, "oom": 10_000, "window": 1.0},
            },
        )
        orchestrator.attach(Evaluate("evaluator"))
        orchestrator.attach(Checkpoint(every=2))

        @orchestrator.on(Events.EPOCH_COMPLETED)
        def note(run: Orchestrator) -> None:
            self.epochs.append(run.state.epoch)
            self.metrics.append(dict(run.metrics))
            if strike is not None and strike.enough:
                run.terminate("it has had enough")

        @orchestrator.on(Events.COMPLETED)
        def end(run: Orchestrator) -> None:
            self.digests = run.call(stochastic.digest)

        if strike is not None:
            orchestrator.on(Events.STARTED)(lambda run: strike.begin(run))
            orchestrator.on(Events.ITERATION_COMPLETED, blocking=False)(lambda run: strike.see(run.state.iteration))
        orchestrator.run(max_epochs=epochs)
        return self

    @property
    def journal(self) -> list[dict[str, Any]]:
        """What was written down."""
        return list(read_journal(str(self.folder / "soak" / "journal.jsonl")))


class Striker:
    """Does something to the run, whenever its time has come and training has come on.

    Args:
        soak: the run.
        chance: from which everything is drawn.
        seconds: for how long.
    """

    def __init__(self, soak: Soak, chance: random.Random, seconds: float) -> None:
        self._soak = soak
        self._chance = chance
        self._until = time.monotonic() + seconds
        self._seconds = seconds
        self._next = 0.0
        self._iteration = 0
        self._struck_at = 0
        self._run: Any = None
        self._kinds: dict[str, tuple[float, Callable[[], bool]]] = {
            "kill a rank": (4.0, lambda: self._kill(self._member())),
            "kill both ranks": (0.5, lambda: self._kill(*self._run.ranks.members)),
            "kill a spare": (1.0, lambda: self._kill(*self._run.ranks.spares[:1])),
            "stop a rank": (1.0, lambda: self._signal(self._member(), signal.SIGSTOP)),
            "kill a loader process": (2.0, self._kill_a_loader),
            "kill a node": (1.0, self._kill_a_node),
        }

    @property
    def enough(self) -> bool:
        """Whether it is over."""
        return time.monotonic() > self._until

    def begin(self, run: Orchestrator) -> None:
        """Training begins."""
        self._run = run._run
        self._until = time.monotonic() + self._seconds
        self._run.loop.on_tick.append(self._tick)

    def see(self, iteration: int) -> None:
        """All have done an iteration."""
        self._iteration = max(self._iteration, iteration)

    def _tick(self) -> None:
        now = time.monotonic()
        if now < self._next or self.enough or self._iteration < self._struck_at + ROUTE:
            return
        self._next, self._struck_at = now + self._chance.uniform(*APART), self._iteration
        weights = [weight for weight, _ in self._kinds.values()]
        for kind in self._chance.choices(list(self._kinds), weights, k=self._chance.choice((1, 1, 1, 1, 2))):
            self._soak.struck[kind] += self._kinds[kind][1]()

    def _member(self) -> int:
        member: int = self._chance.choice(self._run.ranks.members)
        return member

    def _kill(self, *workers: int) -> bool:
        return any([self._signal(worker, signal.SIGKILL) for worker in workers])

    def _signal(self, worker: int, number: int) -> bool:
        """Whether it could be done: it may be gone already."""
        place = self._run.loop.facts.places[worker]
        if place.pid not in self._soak.gone and psutil.pid_exists(place.pid):
            os.kill(place.pid, number)
            self._soak.gone.append(place.pid)
            return True
        return False

    def _kill_a_loader(self) -> bool:
        """The process that loads for a rank: the last one in the line from the rank over its fork server."""
        rank = self._run.loop.facts.places[self._member()].pid
        if rank not in self._soak.gone and psutil.pid_exists(rank):
            servers = [child for child in psutil.Process(rank).children() if "forkserver" in " ".join(child.cmdline())]
            for loader in [loader for server in servers for loader in server.children()][:1]:
                loader.kill()
                self._soak.gone.append(loader.pid)
                return True
        return False

    def _kill_a_node(self) -> bool:
        """One that is not the driver's, as long as enough are left."""
        cluster, facts = self._soak.cluster, self._run.loop.facts
        if len(cluster.others) <= NODES:
            return False
        node = self._chance.choice(cluster.others)
        self._soak.gone += [place.pid for place in facts.places.values() if place.node == node.node_id]
        cluster.kill(node).wait()
        cluster.remove(node)
        return True


@pytest.mark.skipif(not SECONDS, reason="RANKFIRE_SOAK does not say for how many seconds")
@pytest.mark.timeout(600 + 4 * SECONDS)
def test_nothing_that_happens_for_minutes_changes_what_comes_out(tmp_path: Path, ray_nodes: RayNodes) -> None:
    print(f"RANKFIRE_SOAK={SECONDS:g} RANKFIRE_SEED={SEED}")
    for _ in range(NODES + min(4, 1 + int(SECONDS / 120))):
        ray_nodes.add(CPUS)
    soak = Soak(tmp_path / "soak", ray_nodes)
    soak.run(pause=PAUSE, epochs=10**6, strike=Striker(soak, random.Random(SEED), SECONDS))
    report(soak)
    calm = Soak(tmp_path / "calm", ray_nodes).run(pause=0.0, epochs=len(soak.epochs))
    assert soak.epochs == list(range(1, len(soak.epochs) + 1))  # each handler once
    assert soak.metrics == calm.metrics
    assert soak.digests == calm.digests
    assert soak.struck.total() >= SECONDS / 30  # it did happen
    told = Counter(line["event"] for line in soak.journal)
    assert told["WORKER_LOST"] + told["SPARE_LOST"] + told["MENDED"] > 0
    wait_until(lambda: not any(map(psutil.pid_exists, soak.gone)), what="the end of all that was struck", timeout=30)
    registry = Registry(storage_at(soak.folder / "soak" / "checkpoints"))
    assert [wrong for one in registry.committed() for wrong in problems(one.storage, one.manifest)] == []
    assert registry.committed()[-1].manifest.iteration == len(soak.epochs) * 8


def report(soak: Soak) -> None:
    """What happened, for whoever reads the output."""
    told = Counter(line["event"] for line in soak.journal)
    seconds = sorted(line["seconds"] for line in soak.journal if line["event"] == "RECOVERED")
    print(f"struck: {dict(soak.struck)}")
    print(f"told: {dict(told)}")
    print(f"epochs: {len(soak.epochs)}; recovered within {seconds[0]:.2f} to {seconds[-1]:.2f} s" if seconds else "")
