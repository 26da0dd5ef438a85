"""Whole jobs over plain processes, to which something happens; and the promises that hold whatever it was.

A test describes a `Job`, `run` trains it, and `Ended` says what came of it. `promises` is the oracle: it compares with
the run to which nothing happened, and looks at the journal, the checkpoints and the handlers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from orchestrator import Checkpoint, Evaluate, Orchestrator
from orchestrator.checkpoints.registry import Registry
from orchestrator.checkpoints.verify import problems
from orchestrator.errors import RankfireError
from orchestrator.journal import read_journal
from tests.journeys import stochastic
from tests.process_ranks import ProcessGroup
from tests.recovery import program
from tests.recovery.program import Fault
from workers import Events, failpoints
from workers.locations import storage_at

__all__ = ["PER_EPOCH", "Ended", "Job", "Moment", "kill", "promises", "run", "until_committed"]

PER_EPOCH = 8  # iterations: 90 samples in batches of 12
Moment = Callable[[Orchestrator, ProcessGroup], None]
"""Something that happens on the driver's side, at a gate."""


def kill(*ranks: int) -> Moment:
    """End the processes of these ranks, all at once."""

    def act(run: Orchestrator, group: ProcessGroup) -> None:
        assert run._run is not None
        for worker in [run._run.ranks.members[rank] for rank in ranks]:
            group.signal(worker)

    return act


def until_committed(run: Orchestrator, group: ProcessGroup) -> None:
    """Wait for the checkpoint that is being written."""
    assert run._run is not None
    run._run.saver.wait()


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Args:
        workers: the section of a job file.
        faults: what happens in the program.
        points: what happens at failpoints of the ranks.
        epochs: how long it trains.
        config: of the program, beside the faults.
        recovery: the section of a job file.
        checkpoints: whether there are any.
        on_save_error: what one that could not be written means.
        at_gate: epoch → what happens at its end, before the ranks are asked for anything.
        after_call: the same, when they have been asked, while they wait still.
        at_end: the same, when training is completed.
        at_iteration: what the driver does when it hears of an iteration, without anybody waiting.
        blocking: whether all wait for it after all.
        group: the class of the workers.
        prepare: arguments of `worker.prepare`.
    """

    workers: Mapping[str, Any] = field(default_factory=lambda: {"count": 2, "spares": 1})
    faults: Sequence[Fault] = ()
    points: str = ""
    epochs: int = 3
    config: Mapping[str, Any] = field(default_factory=dict)
    recovery: Mapping[str, Any] = field(default_factory=dict)
    checkpoints: bool = True
    on_save_error: Literal["stop", "continue"] = "stop"
    at_gate: Mapping[int, Moment] = field(default_factory=dict)
    after_call: Mapping[int, Moment] = field(default_factory=dict)
    at_end: Moment | None = None
    at_iteration: Callable[[Orchestrator, ProcessGroup, int], None] | None = None
    blocking: bool = False
    group: type[ProcessGroup] = ProcessGroup
    prepare: Mapping[str, Any] = field(default_factory=dict)

    def calm(self) -> Job:
        """The same, with nothing happening to it."""
        return Job(
            workers={**self.workers, "spares": 0},
            epochs=self.epochs,
            config=self.config,
            checkpoints=self.checkpoints,
            prepare=self.prepare,
        )

    @property
    def key(self) -> str:
        """What decides how a calm run ends."""
        return json.dumps([self.workers["count"], self.epochs, self.config, self.checkpoints, self.prepare])


@dataclass(kw_only=True)
class Ended:
    """What came of a run.

    Args:
        folder: of its logs and marks.
        epochs: at which the driver's handler was called, in order.
        metrics: after each of them.
        called: what ranks answered there.
        digests: of all ranks' final states.
        samples: consumed by all ranks, as the driver knows.
        journal: its lines.
        error: what it ended with.
    """

    folder: Path
    epochs: list[int] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    called: list[list[str]] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    samples: int = 0
    journal: list[dict[str, Any]] = field(default_factory=list)
    error: RankfireError | None = None

    def told(self, event: str) -> list[dict[str, Any]]:
        """The journal's lines of one event."""
        return [line for line in self.journal if line["event"] == event]

    @property
    def fired(self) -> list[str]:
        """The faults that struck."""
        marks = sorted(path.stem for path in (self.folder / "marks").iterdir() if path.suffix[1:].isdigit())
        trace = self.folder / "trace"
        return marks + (trace.read_text().splitlines() if trace.exists() else [])

    @property
    def consumed(self) -> dict[int, dict[int, list[int]]]:
        """Iteration → rank → the samples that it consumed there."""
        return self._counted("indices")

    @property
    def losses(self) -> dict[int, dict[int, float]]:
        """Iteration → rank → the loss that it measured there."""
        return self._counted("loss")

    @property
    def registry(self) -> Registry:
        """The run's checkpoints."""
        return Registry(storage_at(self.folder / "runs/job/checkpoints"))

    def _counted(self, what: str) -> dict[int, dict[int, Any]]:
        """Of the ranks' logs what counts in the end: an iteration that was replayed is there more than once."""
        newest: dict[int, tuple[int, dict[int, Any]]] = {}
        for file in self.folder.glob("*.jsonl"):
            for line in map(json.loads, file.read_text().splitlines()):
                generation, ranks = newest.get(line["iteration"], (-1, {}))
                if line["generation"] > generation:
                    ranks = {}
                if line["generation"] >= generation:
                    ranks[line["rank"]] = line[what]
                    newest[line["iteration"]] = line["generation"], ranks
        return {iteration: ranks for iteration, (_, ranks) in sorted(newest.items())}


def run(job: Job, folder: Path) -> Ended:
    """Train a job in a folder; where one was trained, it goes on."""
    (folder / "marks").mkdir(parents=True, exist_ok=True)
    ended = Ended(folder=folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.training.RayGroup", job.group)
        patch.setattr(ProcessGroup, "made", [])
        patch.setenv(failpoints.VARIABLE, job.points)  # for the ranks: the driver has imported it long ago
        patch.setenv(failpoints.TRACE, str(folder / "trace"))
        try:
            _orchestrator(job, ended).run(max_epochs=job.epochs)
        except RankfireError as error:
            ended.error = error
    ended.journal = list(read_journal(str(folder / "runs/job/journal.jsonl")))
    return ended


def _orchestrator(job: Job, ended: Ended) -> Orchestrator:
    folder = ended.folder
    faults = [asdict(fault) for fault in job.faults]
    config = {
        **job.config,
        "log": str(folder),
        "marks": str(folder / "marks"),
        "faults": faults,
        "prepare": job.prepare,
    }
    orchestrator = Orchestrator(
        program.build, run="job", workers=job.workers, config=config, storage=folder / "runs", recovery=job.recovery
    )
    orchestrator.attach(Evaluate("evaluator"))
    if job.checkpoints:
        orchestrator.attach(Checkpoint(every=1, on_save_error=job.on_save_error))

    @orchestrator.on(Events.EPOCH_COMPLETED)
    def note(run: Orchestrator) -> None:
        epoch = run.state.epoch
        ended.epochs.append(epoch)
        ended.metrics.append(dict(run.metrics))
        if epoch in job.at_gate:
            job.at_gate[epoch](run, ProcessGroup.made[-1])
        ended.called.append(run.call(program.touch))
        if epoch in job.after_call:
            job.after_call[epoch](run, ProcessGroup.made[-1])

    @orchestrator.on(Events.COMPLETED)
    def end(run: Orchestrator) -> None:
        if job.at_end is not None:
            job.at_end(run, ProcessGroup.made[-1])
        ended.digests = run.call(stochastic.digest)
        assert run._run is not None
        ended.samples = run._run.gates.samples

    if (watch := job.at_iteration) is not None:

        @orchestrator.on(Events.ITERATION_COMPLETED, blocking=job.blocking)
        def see(run: Orchestrator) -> None:
            watch(run, ProcessGroup.made[-1], run.state.iteration)

    return orchestrator


# ---------------------------------------------------------------- the promises
def promises(job: Job, ended: Ended, calm: Ended, lost: Sequence[int] | None) -> None:
    """What holds after any fault, where as many ranks train at the end as at the beginning.

    Args:
        job: that was run.
        ended: what came of it.
        calm: what came of the same job when nothing happened to it.
        lost: ranks that were lost; None: whoever.
    """
    assert ended.error is None
    assert ended.epochs == list(range(1, job.epochs + 1))
    assert ended.called == calm.called
    assert ended.digests == calm.digests
    assert ended.metrics == calm.metrics
    assert ended.samples == calm.samples
    assert ended.consumed == calm.consumed
    told_of(ended, lost)
    if job.checkpoints:
        checkpoints_hold(ended, job.epochs * PER_EPOCH)


def told_of(ended: Ended, lost: Sequence[int] | None) -> None:
    """Each loss is in the journal, and behind the last one that all was well again."""
    told = sorted(line["rank"] for line in ended.told("WORKER_LOST"))
    events = [line["event"] for line in ended.journal]
    if lost is not None:
        assert told == sorted(lost)
    if told:
        assert "RECOVERED" in events[len(events) - 1 - events[::-1].index("WORKER_LOST") :]
    assert events[-1] == "RUN_COMPLETED"


def checkpoints_hold(ended: Ended, iteration: int | None = None) -> None:
    """Every byte of every checkpoint verifies, and the newest one is of this iteration, or of any."""
    found = ended.registry.found()
    assert [what for _, what in found if isinstance(what, str)] == []
    checkpoints = ended.registry.committed()
    assert [wrong for one in checkpoints for wrong in problems(one.storage, one.manifest)] == []
    newest, refused = ended.registry.newest_valid()
    assert newest is not None
    assert refused == []
    assert iteration in (None, newest.manifest.iteration)
