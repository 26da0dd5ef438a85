"""Handlers that only measure: norms, throughput, memory, the table of timers; and the collection of garbage."""

import gc
from typing import Any

import pytest
import torch

from tests.workers.handlers.regression import regression
from workers import Engine, Events, Worker
from workers.handlers import GarbageCollection, Memory, Norms, Throughput, Timers
from workers.handlers.timers import table_of


# ---------------------------------------------------------------- norms
def test_the_norms_are_those_of_all_gradients_and_all_parameters() -> None:
    made = regression(worker=Worker())
    Norms(every=2).attach(made.trainer)
    metrics = made.trainer.run(made.data, max_iters=2).metrics
    parameters = list(made.model.parameters())
    gradients = torch.cat([p.grad.flatten() for p in parameters])  # type: ignore[union-attr]
    assert float(metrics["gradient_norm"]) == pytest.approx(float(gradients.norm()))
    assert float(metrics["parameter_norm"]) == pytest.approx(
        float(torch.cat([p.detach().flatten() for p in parameters]).norm())
    )


def test_norms_are_looked_at_every_so_many_iterations_of_models_that_are_given() -> None:
    made = regression()
    Norms(every=4, gradients=False, models=[made.model]).attach(made.trainer)
    seen: list[set[str]] = []
    made.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append({*engine.state.metrics}))
    made.train()
    assert seen == [set(), set(), set(), *[{"parameter_norm"}] * 3]


def test_an_engine_alone_has_no_models() -> None:
    made = regression()
    Norms(every=1).attach(made.trainer)
    with pytest.raises(ValueError, match=r"received an engine alone; write Norms\(models=\[model\]\)"):
        made.train()


# ---------------------------------------------------------------- throughput
def speeds(epoch_length: int, *, pause: float = 0.0, **given: Any) -> list[dict[str, float]]:
    now, seen = [0.0], []

    def step(engine: Engine, batch: torch.Tensor) -> None:
        now[0] += 0.5

    def wait(engine: Engine) -> None:
        now[0] += pause

    trainer = Engine(step)
    Throughput(every=2, clock=lambda: now[0], samples=len, **given).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, wait)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(dict(engine.state.metrics)))
    trainer.run([torch.zeros(4)] * epoch_length, max_epochs=2)
    return seen


def test_samples_and_tokens_are_counted_by_the_second_and_flops_by_the_peak() -> None:
    seen = speeds(4, tokens_per_sample=10, flops_per_sample=3.0, peak_flops=48.0)
    assert seen[0] == {}
    assert seen[1] == {"samples_per_second": 8.0, "tokens_per_second": 80.0, "mfu": 0.5}


def test_the_time_between_epochs_does_not_count() -> None:
    assert speeds(4, pause=1000.0)[-1] == {"samples_per_second": 8.0}
    assert speeds(3, pause=1000.0)[-1] == {"samples_per_second": 8.0}  # epochs end within measurements


def test_without_a_count_of_ones_own_the_loader_says_how_many() -> None:
    made, now = regression(worker=Worker()), [0.0]
    Throughput(every=3, clock=lambda: now[0]).attach(made.trainer)
    made.trainer.add_event_handler(Events.ITERATION_STARTED, lambda: now.__setitem__(0, now[0] + 1.0))
    assert made.train().trainer.state.metrics["samples_per_second"] == 8.0


def test_numbers_that_are_none_are_refused() -> None:
    for name in ("every", "tokens_per_sample", "flops_per_sample", "peak_flops"):
        with pytest.raises(ValueError, match=rf"Throughput\({name}\): expected"):
            Throughput(**{name: 0})  # type: ignore[arg-type]


# ---------------------------------------------------------------- memory
def test_the_memory_of_the_process_is_told_in_mib() -> None:
    made = regression()
    Memory().attach(made.trainer)
    assert 50 < made.train().trainer.state.metrics["process_memory"] < 100_000


# ---------------------------------------------------------------- the collection of garbage
def test_garbage_is_collected_at_its_iterations_and_only_there_while_training() -> None:
    trainer, seen = Engine(lambda engine, batch: gc.isenabled()), []
    GarbageCollection(every=2, full_every=2).attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.output))

    def heard(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            seen.append(info["generation"])

    gc.collect()
    gc.callbacks.append(heard)
    try:
        trainer.run(range(5))
    finally:
        gc.callbacks.remove(heard)
    assert seen == [False, 1, False, False, 2, False, False]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_an_exception_gives_the_collection_back() -> None:
    trainer = Engine(lambda engine, batch: 1 / 0)
    GarbageCollection().attach(trainer)
    with pytest.raises(ZeroDivisionError):
        trainer.run([0])
    assert gc.isenabled()


# ---------------------------------------------------------------- timers
def test_the_table_of_an_engine_is_told_at_its_end() -> None:
    made, told = regression(), []
    timers = Timers(tell=told.append)
    timers.attach(made.trainer)
    made.train(2)
    assert told == [timers.table + "\n"]
    assert "process function" in timers.table


def test_lines_that_only_some_ranks_have_are_told_too() -> None:
    table = table_of([[(0, "run", 1, 2.0)], [(0, "run", 1, 1.0), (1, "event X", 3, 0.5)]])
    assert [line.split() for line in table.splitlines()[1:]] == [
        ["run", "1", "1.5000", "2.0000", "0"],
        ["event", "X", "3", "0.5000", "0.5000", "1"],
    ]
