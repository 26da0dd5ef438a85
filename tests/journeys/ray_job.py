"""The stochastic program as a job of two ranks on a Ray cluster, and what its handlers saw: for tests of faults."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator import Checkpoint, ClusterEvents, Evaluate, Orchestrator
from orchestrator.cluster_events import Recovered, WorkerLost
from orchestrator.journal import read_journal
from tests.journeys import stochastic
from tests.waiting import wait_until
from workers import Events, Worker

__all__ = ["EPOCHS", "Job", "assert_equal"]

EPOCHS = 6


class Job:
    """One run of the stochastic program on a cluster, and what its handlers saw."""

    def __init__(self, folder: Path, address: str, run: str, **options: Any) -> None:
        workers = {"count": 2, "cpus": 0.5, **options.pop("workers", {})}
        self.folder = folder
        self.orchestrator = Orchestrator(
            stochastic.build,
            run=run,
            workers=workers,
            cluster={"address": address, **options.pop("cluster", {})},
            storage=folder / "runs",
            **options,
        )
        self.orchestrator.attach(Evaluate("evaluator"))
        self.orchestrator.attach(Checkpoint(every=1))
        self.epochs: list[int] = []
        self.metrics: list[dict[str, float]] = []
        self.digests: list[str] = []
        self.lost: list[WorkerLost] = []
        self.recovered: list[Recovered] = []
        self.orchestrator.on(Events.EPOCH_COMPLETED)(self._epoch)
        self.orchestrator.on(Events.COMPLETED)(self._end)
        self.orchestrator.on(ClusterEvents.WORKER_LOST)(lambda run, lost: self.lost.append(lost))
        self.orchestrator.on(ClusterEvents.RECOVERED)(lambda run, recovered: self.recovered.append(recovered))

    def run(self) -> Job:
        assert self.orchestrator.run(max_epochs=EPOCHS).status == "completed"
        return self

    def kill_at(self, iteration: int, rank: int) -> Job:
        """Have a rank's process killed when all ranks have reported an iteration."""
        return self.at(iteration, lambda: os.kill(self.pids[rank], signal.SIGKILL))

    def at(self, iteration: int, act: Callable[[], object]) -> Job:
        """Have something done when all ranks have reported an iteration."""

        @self.orchestrator.on(Events.ITERATION_COMPLETED(once=iteration))
        def do(run: Orchestrator) -> None:
            act()

        return self

    def hold(self, epoch: int, until: Callable[[], object], what: str) -> Job:
        """Have all ranks wait at the end of an epoch, while faults are mended, until something is true."""

        @self.orchestrator.on(Events.EPOCH_COMPLETED(once=epoch))
        def wait(run: Orchestrator) -> None:
            def seen() -> object:
                run.call(_nothing)  # the loop turns while it is asked
                return until()

            wait_until(seen, what=what, timeout=90)

        return self

    @property
    def pids(self) -> dict[int, int]:
        """Rank → the process that holds it now."""
        return {line["rank"]: line["pid"] for line in self.lines("WORKER_JOINED")}

    @property
    def nodes(self) -> dict[int, str]:
        """Rank → the node on which it is now."""
        return {line["rank"]: line["node"] for line in self.lines("WORKER_JOINED")}

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The journal's lines of one kind."""
        journal = read_journal(self.folder / "runs" / self.orchestrator.settings.run / "journal.jsonl")
        return [line for line in journal if line["event"] == event]

    def _epoch(self, run: Orchestrator) -> None:
        self.epochs.append(run.state.epoch)
        self.metrics.append(dict(run.metrics))

    def _end(self, run: Orchestrator) -> None:
        self.digests = run.call(stochastic.digest)


def _nothing(worker: Worker) -> None:
    pass


def assert_equal(job: Job, calm: Job) -> None:
    """Bit by bit, rank by rank; and every handler of an epoch ran once."""
    assert job.digests == calm.digests
    assert job.metrics == calm.metrics
    assert job.epochs == list(range(1, EPOCHS + 1))
