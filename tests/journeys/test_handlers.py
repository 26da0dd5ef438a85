"""Shipped handlers on several ranks, attached to the orchestrator alone: deaths and resumes change nothing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from orchestrator import Checkpoint, Evaluate, Orchestrator
from orchestrator.journal import read_journal
from orchestrator.loggers import JSONLLogger
from tests.journeys import programs, stochastic
from tests.process_ranks import ProcessGroup
from workers import Engine, Events, Program, Worker
from workers.handlers import (
    EMA,
    BatchSizeFinder,
    EarlyStopping,
    GarbageCollection,
    LRFinder,
    LRSchedule,
    Memory,
    Norms,
    Profile,
    ReduceLROnPlateau,
    Throughput,
    TimeLimit,
    Timers,
)

PER_EPOCH = 7  # iterations: 50 samples in batches of 8


@pytest.fixture(autouse=True)
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.training.RayGroup", ProcessGroup)


def build(worker: Worker) -> Program:
    """The linear program; rank 1 is killed once, at the iteration of `worker.config["kill"]`."""
    program = programs.linear(worker)

    def die(engine: Engine) -> None:
        mark = Path(worker.config["mark"])
        if worker.rank == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    if "kill" in worker.config:
        program.engines["trainer"].add_event_handler(Events.ITERATION_COMPLETED(once=worker.config["kill"]), die)
    return program


def crowded(worker: Worker) -> Program:
    """The linear program; on rank 1 no more than 20 samples fit into memory."""
    program = programs.linear(worker)
    trainer, step = program.engines["trainer"], program.engines["trainer"].process_function

    def train(engine: Engine, batch: Any) -> Any:
        if worker.rank == 1 and len(batch[0]) > 20:
            torch.empty(1 << 62, dtype=torch.uint8)
        return step(engine, batch)

    trainer.process_function = train
    return program


def entries(worker: Worker) -> list[str]:
    assert worker.program is not None
    return list(worker.program.state)


def averages_are_in_use(worker: Worker) -> bool:
    assert worker.program is not None
    return bool(worker.program.state["ema"].swapped)  # type: ignore[attr-defined]


def cosine(optimizer: torch.optim.Optimizer) -> CosineAnnealingLR:
    return CosineAnnealingLR(optimizer, 4)


class Trained:
    """A run with all handlers on it, and what came of it."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.folder = folder
        spares = 1 if config else 0
        config = {"metrics": True, "mark": str(folder / "mark"), **config}
        self.orchestrator = Orchestrator(build, run="r", workers=2, spares=spares, storage=folder, config=config)
        self.stopping = EarlyStopping("validation/mse", patience=2, min_delta=1.0)
        self.plateau = ReduceLROnPlateau("validation/mse", factor=0.5, patience=1, min_delta=1.0)
        self.found: dict[str, Any] = {}
        self.told: list[str] = []
        for handler in (
            Evaluate(),
            self.stopping,
            self.plateau,
            LRSchedule(cosine, warm_up=5, event=Events.ITERATION_COMPLETED),
            EMA(decay=0.8),
            Norms(every=1),
            Throughput(every=1, tokens_per_sample=4, flops_per_sample=48.0, peak_flops=1e12),
            Memory(),
            GarbageCollection(every=2),
            Profile(first=10, iterations=2, ranks=[0, 1]),
            TimeLimit(3600),
            Timers(tell=self.told.append),
            JSONLLogger(),
            Checkpoint(every=1, keep=9),
        ):
            self.orchestrator.attach(handler)
        self.orchestrator.on(Events.COMPLETED)(self._look)

    def _look(self, run: Orchestrator) -> None:
        self.found = {"digests": run.call(stochastic.digest), "entries": run.call(entries, rank=0)}

    def run(self, max_epochs: int) -> Trained:
        self.result = self.orchestrator.run(max_epochs)
        return self

    def lines(self, event: str) -> list[dict[str, Any]]:
        return [line for line in read_journal(self.folder / "r" / "journal.jsonl") if line["event"] == event]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What was logged, without what a clock or the machine decides."""
        lines = (self.folder / "r" / "metrics.jsonl").read_text().splitlines()
        kept = ("iteration", "epoch", "loss", "lr", "gradient_norm", "parameter_norm", "validation/mse")
        return [{key: value for key, value in json.loads(line).items() if key in kept} for line in lines]

    @property
    def decided(self) -> Any:
        return self.stopping.state_dict(), self.plateau.state_dict(), self.result.metrics["validation/mse"]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.training.RayGroup", ProcessGroup)
        return Trained(tmp_path_factory.mktemp("calm")).run(max_epochs=9)


def test_training_ends_when_the_reduced_metric_gets_no_better(calm: Trained) -> None:
    scores = [line["metrics"]["mse"] for line in calm.lines("EVALUATION_COMPLETED")]
    assert calm.result.status == "terminated"
    assert calm.result.reason == (
        f"validation/mse has not got better for 2 evaluations; the best was {calm.stopping.best}"
    )
    assert calm.stopping.best is not None
    assert scores[-3] == calm.stopping.best
    assert all(score > calm.stopping.best - 1.0 for score in scores[-2:])


def test_the_rates_were_lowered_once_on_all_ranks_and_all_ranks_agree(calm: Trained) -> None:
    (reduced, *_) = calm.lines("LEARNING_RATE_REDUCED")
    assert reduced["metric"] == "validation/mse"
    assert len(reduced["rates"]) == 1
    assert calm.found["entries"] == ["model", "optimizer", "ema"]


def test_each_epoch_was_logged_once(calm: Trained) -> None:
    assert [row["epoch"] for row in calm.rows] == list(range(1, calm.result.state.epoch + 1))
    assert all(len(row) == 7 for row in calm.rows)


def test_metrics_of_the_ranks_are_told_for_all_of_them(calm: Trained) -> None:
    metrics = calm.result.metrics
    assert {"lr", "gradient_norm", "parameter_norm", "process_memory"} <= metrics.keys()
    assert metrics["tokens_per_second"] == pytest.approx(4 * metrics["samples_per_second"])
    assert metrics["mfu"] == pytest.approx(metrics["samples_per_second"] / 2 * 48e-12)


def test_each_chosen_rank_wrote_its_trace_into_the_runs_folder(calm: Trained) -> None:
    traces = sorted((calm.folder / "r" / "profiles").iterdir())
    assert [trace.name for trace in traces] == [f"rank-000{rank}-iterations-10-11.json" for rank in (0, 1)]
    assert all(json.loads(trace.read_text())["traceEvents"] for trace in traces)


def test_the_table_of_timers_has_both_ranks(calm: Trained) -> None:
    (table,) = calm.told
    head, run, *rest = table.splitlines()
    assert head.split() == ["section", "calls", "mean,", "s", "slowest,", "s", "rank"]
    assert run.startswith("run ")
    assert any(line.strip().startswith("process function") for line in rest)


def test_a_rank_that_dies_changes_no_bit_and_no_decision(calm: Trained, tmp_path: Path) -> None:
    killed = Trained(tmp_path, kill=PER_EPOCH + 4).run(max_epochs=9)
    assert (tmp_path / "mark").exists()
    assert len(killed.lines("RECOVERED")) == 1
    assert (killed.found, killed.decided) == (calm.found, calm.decided)
    assert len(killed.lines("LEARNING_RATE_REDUCED")) == len(calm.lines("LEARNING_RATE_REDUCED"))
    assert killed.rows == calm.rows


def test_a_run_that_is_gone_on_with_ends_the_same_and_one_that_was_stopped_stays_so(
    calm: Trained, tmp_path: Path
) -> None:
    Trained(tmp_path).run(max_epochs=2)
    resumed = Trained(tmp_path).run(max_epochs=9)
    assert (resumed.found, resumed.decided, resumed.rows) == (calm.found, calm.decided, calm.rows)
    again = Trained(tmp_path).run(max_epochs=9)
    assert again.result.state.epoch == calm.result.state.epoch
    assert again.result.reason == calm.result.reason


def test_finders_ask_all_ranks_find_one_answer_and_leave_nothing_behind(tmp_path: Path) -> None:
    found: dict[bool, Any] = {}
    sizes, rates = BatchSizeFinder(), LRFinder(1e-4, 10.0, iterations=30, apply=False)
    for searched in (True, False):
        orchestrator = Orchestrator(crowded, run=f"searched-{searched}", workers=2, storage=tmp_path)
        if searched:
            orchestrator.attach(sizes)
            orchestrator.attach(rates)
        orchestrator.on(Events.COMPLETED)(
            lambda run, searched=searched: found.setdefault(searched, run.call(stochastic.digest))
        )
        orchestrator.run(max_epochs=1)
    assert found[True] == found[False]
    assert sizes.size == 16
    assert len(rates.rates) == len(rates.losses) < 30  # the loss diverged
    assert rates.suggestion is not None
    assert 1e-4 < rates.suggestion < 1.0
