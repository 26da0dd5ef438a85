"""What a rank tells of its engines: states and numbers at a gate, progress in a pulse."""

import pytest
import torch

from workers.engine import Engine
from workers.errors import ProgramError
from workers.metrics import attach_metric
from workers.parcels import MetricPack, Number
from workers.reports import Reports
from workers.worker import Worker

CPU = torch.device("cpu")


@pytest.fixture
def engine():
    engine = Engine(lambda engine, batch: {"loss": batch, "text": "no number"})
    attach_metric(engine, "mean", "mean", output=lambda out: out["loss"])
    return engine


@pytest.fixture
def worker():
    worker = Worker(device=CPU)
    worker.samples, worker.batch_size = 12, 3
    return worker


def test_a_report_tells_where_the_engine_is_and_what_it_measured(engine, worker):
    engine.run([1.0, 3.0], max_epochs=2)
    report = Reports().of(engine, worker)
    packs = report.pop("packs")
    assert report == {
        "epoch": 2, "iteration": 4, "epoch_length": 2, "samples": 12,
        "output": {"loss": Number(value=3.0, count=3)},
    }  # fmt: skip
    assert list(packs) == ["mean"]
    assert isinstance(packs["mean"], MetricPack)


def test_numbers_of_the_user_travel_beside_the_states(engine):
    engine.run([1.0])
    engine.state.metrics |= {"lr": 0.1, "tokens": Number(value=5, reduce="sum"), "words": "none"}
    packs = Reports().packs(engine)
    assert packs.pop("mean").parts
    assert packs == {"lr": Number(value=0.1), "tokens": Number(value=5, reduce="sum")}


def test_what_came_back_reduced_is_not_sent_again_until_it_changes(engine):
    reports = Reports()
    reports.take_back(engine, {"accuracy": 0.5, "mean": 2.0})
    assert engine.state.metrics == {"accuracy": 0.5, "mean": 2.0}
    assert reports.packs(engine) == {}
    engine.state.metrics["accuracy"] = float("0.5")  # the same value, but this rank's own
    assert reports.packs(engine) == {"accuracy": Number(value=0.5)}


def test_a_metric_that_saw_nothing_is_not_sent(engine):
    assert Reports().packs(engine) == {}


def test_before_the_program_there_is_no_progress():
    progress = Reports().progress(None, None)
    assert progress.pop("idle") >= 0
    assert progress == {"iteration": 0, "epoch": 0, "moves": 0, "busy": 0.0, "samples": 0, "output": {}}


def test_progress_is_a_new_iteration_or_a_new_phase(engine, worker, monkeypatch):
    now = [10.0]
    monkeypatch.setattr("workers.reports.time.monotonic", lambda: now[0])
    reports, idle = Reports(), []
    for seconds, iteration in ((1, 0), (2, 1), (3, 1)):
        now[0] += seconds
        engine.state.iteration = iteration
        idle.append(reports.progress(engine, worker)["idle"])
    reports.moved(engine)
    now[0] += 4
    idle.append(reports.progress(engine, worker)["idle"])
    assert idle == [1, 0, 3, 0]


def test_moves_are_counted_within_an_iteration_and_those_of_an_evaluation_while_it_runs(engine, worker):
    reports, seen = Reports(), []

    def look():
        seen.append(reports.progress(engine, worker, [engine, evaluator])["moves"])

    evaluator = Engine(lambda evaluator, batch: look())
    for iteration, moves in ((3, 2), (4, 1)):
        engine.state.iteration = iteration
        for _ in range(moves):
            reports.moved(engine)
        look()
    evaluator.run([0, 0])
    look()
    assert seen == [2, 1, 2, 3, 1]


def test_a_pulse_tells_the_output_only_where_reading_does_not_wait(engine, worker):
    engine.state.output = {"loss": torch.tensor(2.0), "far": torch.tensor(1.0, device="meta")}
    progress = Reports().progress(engine, worker)
    assert progress["output"] == {"loss": Number(value=2.0)}
    assert progress["samples"] == 12


def test_what_is_told_in_passing_does_not_wait_for_the_device_either(engine, worker):
    engine.state.output = {"loss": torch.tensor(2.0), "far": torch.tensor(1.0, device="meta")}
    engine.state.metrics |= {"near": torch.tensor(3.0), "far": torch.tensor(1.0, device="meta")}
    report = Reports().of(engine, worker, on_cpu=True)
    assert report["output"] == {"loss": Number(value=2.0, count=3)}
    assert report["packs"] == {"near": Number(value=3.0)}


class Treacherous(dict):
    """As one that the training thread changes while the pulse reads it."""

    def items(self):
        raise RuntimeError("dictionary changed size during iteration")


def test_an_output_that_can_not_be_read_costs_a_pulse_its_numbers_only(engine, worker):
    engine.state.output, engine.state.iteration = Treacherous(), 5
    progress = Reports().progress(engine, worker)
    assert (progress["output"], progress["iteration"]) == ({}, 5)


@pytest.mark.parametrize("value", [10**400, -(10**400)], ids=["large", "small"])
def test_a_metric_that_is_too_large_is_named_and_an_output_that_is_left_out(engine, worker, value):
    engine.state.output = {"loss": 1.0, "big": value}
    assert Reports().of(engine, worker)["output"] == {"loss": Number(value=1.0, count=3)}
    engine.state.metrics["tokens"] = value
    with pytest.raises(ProgramError) as caught:
        Reports().of(engine, worker)
    assert str(caught.value) == (
        "state.metrics['tokens']: expected a number that a float can hold, received one of type int that is too large; "
        "scale it down, or keep it elsewhere"
    )
