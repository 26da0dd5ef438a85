"""Metrics and handlers of pytorch-ignite attach unchanged to our engine, and say what they say on ignite's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ignite.engine
import pytest
import torch
from ignite import handlers as ih
from ignite import metrics as im
from torch import nn

import workers

Made = dict[str, Any]
Theirs = ignite.engine.Events


def classes(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(8, 3, generator=generator), torch.randint(0, 3, (8,), generator=generator)


def binary(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(8, generator=generator).round(), torch.randint(0, 2, (8,), generator=generator)


def real(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, generator=generator), torch.randn(8, generator=generator)


def rows(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 4, generator=generator), torch.randn(8, 4, generator=generator)


def pictures(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(2, 3, 16, 16, generator=generator), torch.rand(2, 3, 16, 16, generator=generator)


def lambda_of_two() -> Any:
    precision, recall = im.Precision(average=False), im.Recall(average=False)
    return (precision * recall * 2 / (precision + recall + 1e-20)).mean()


METRICS: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "Accuracy": (im.Accuracy, classes),
    "TopKCategoricalAccuracy": (lambda: im.TopKCategoricalAccuracy(k=2), classes),
    "Precision": (lambda: im.Precision(average=True), classes),
    "Recall": (lambda: im.Recall(average=True), classes),
    "Fbeta": (lambda: im.Fbeta(beta=1.0), classes),
    "MetricsLambda": (lambda_of_two, classes),
    "ConfusionMatrix": (lambda: im.ConfusionMatrix(num_classes=3), classes),
    "Loss": (lambda: im.Loss(nn.functional.cross_entropy), classes),
    "MeanSquaredError": (im.MeanSquaredError, real),
    "RootMeanSquaredError": (im.RootMeanSquaredError, real),
    "MeanAbsoluteError": (im.MeanAbsoluteError, real),
    "MeanPairwiseDistance": (im.MeanPairwiseDistance, rows),
    "CosineSimilarity": (im.CosineSimilarity, rows),
    "PSNR": (lambda: im.PSNR(data_range=1.0), pictures),
    "SSIM": (lambda: im.SSIM(data_range=1.0), pictures),
    "EpochMetric": (lambda: im.EpochMetric(lambda y_pred, y: float((y_pred - y).abs().max())), real),
    "Average": (lambda: im.Average(output_transform=lambda output: output[0].mean()), real),
    "RunningAverage": (lambda: im.RunningAverage(output_transform=lambda output: output[0].mean().item()), real),
    "RunningAverage of a metric": (lambda: im.RunningAverage(im.MeanSquaredError()), real),
    "MetricGroup": (lambda: im.MetricGroup({"a": im.MeanSquaredError(), "b": im.MeanAbsoluteError()}), real),
}


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_has_the_value_that_it_has_there(name: str) -> None:
    make, batch = METRICS[name]
    generator = torch.Generator().manual_seed(5)
    batches = [batch(generator) for _ in range(6)]
    values = []
    for engine in (ignite.engine.Engine(lambda e, b: b), workers.Engine(lambda e, b: b)):
        make().attach(engine, "value")
        epochs: list[Any] = []
        engine.add_event_handler(
            Theirs.EPOCH_COMPLETED, lambda e, epochs=epochs: epochs.append(e.state.metrics["value"])
        )
        engine.run(batches, max_epochs=2)
        values.append(epochs)
    theirs, ours = values
    assert len(ours) == 2
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


# ---------------------------------------------------------------- handlers
class Setting:
    """A model in training, on ignite's engine or ours."""

    def __init__(self, kind: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(2, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.seen: list[Any] = []

        def step(engine: Any, batch: Any) -> float:
            self.optimizer.zero_grad()
            loss = (self.model(torch.ones(4, 2)) * batch).sum()
            loss.backward()
            self.optimizer.step()
            return loss.item()

        self.engine = kind(step)

    def rates(self) -> None:
        self.engine.add_event_handler(
            Theirs.ITERATION_STARTED, lambda e: self.seen.append(self.optimizer.param_groups[0]["lr"])
        )

    def run(self, epochs: int = 2) -> list[Any]:
        state = self.engine.run([0.1, 0.2, 0.3, 0.4], max_epochs=epochs)
        return [*self.seen, state.iteration, *(p.detach().clone() for p in self.model.parameters())]


def linear_cyclical(on: Setting, folder: Path) -> None:
    on.engine.add_event_handler(Theirs.ITERATION_STARTED, ih.LinearCyclicalScheduler(on.optimizer, "lr", 0.1, 0.01, 4))
    on.rates()


def cosine(on: Setting, folder: Path) -> None:
    on.engine.add_event_handler(Theirs.ITERATION_STARTED, ih.CosineAnnealingScheduler(on.optimizer, "lr", 0.1, 0.01, 4))
    on.rates()


def piecewise(on: Setting, folder: Path) -> None:
    schedule = ih.PiecewiseLinear(on.optimizer, "lr", milestones_values=[(2, 0.5), (5, 0.1)])
    on.engine.add_event_handler(Theirs.ITERATION_STARTED, schedule)
    on.rates()


def warm_up(on: Setting, folder: Path) -> None:
    decay = torch.optim.lr_scheduler.ExponentialLR(on.optimizer, 0.5)
    warm = ih.create_lr_scheduler_with_warmup(decay, warmup_start_value=0.0, warmup_duration=3)
    on.engine.add_event_handler(Theirs.ITERATION_STARTED, warm)
    on.rates()


def lr_scheduler(on: Setting, folder: Path) -> None:
    decay = torch.optim.lr_scheduler.StepLR(on.optimizer, 2, 0.5)
    on.engine.add_event_handler(Theirs.ITERATION_COMPLETED, ih.LRScheduler(decay))
    on.rates()


def plateau(on: Setting, folder: Path) -> None:
    handler = ih.ReduceLROnPlateauScheduler(on.optimizer, metric_name="loss", patience=0, threshold=10.0)
    on.engine.add_event_handler(Theirs.EPOCH_COMPLETED, lambda e: e.state.metrics.update(loss=1.0))
    on.engine.add_event_handler(Theirs.EPOCH_COMPLETED, handler)
    on.rates()


def state_scheduler(on: Setting, folder: Path) -> None:
    schedule = ih.LambdaStateScheduler(param_name="noise", lambda_obj=lambda event: 1.0 / (1 + event), create_new=True)
    schedule.attach(on.engine, Theirs.EPOCH_COMPLETED)
    on.engine.add_event_handler(Theirs.EPOCH_COMPLETED, lambda e: on.seen.append(e.state.noise))


def ema(on: Setting, folder: Path) -> None:
    handler = ih.EMAHandler(on.model, momentum=0.1)
    handler.attach(on.engine, name="momentum", event=Theirs.ITERATION_COMPLETED(every=2))
    on.engine.add_event_handler(
        Theirs.COMPLETED, lambda: on.seen.extend(p.detach().clone() for p in handler.ema_model.parameters())
    )


def checkpoint(on: Setting, folder: Path) -> None:
    saver = ih.DiskSaver(str(folder), create_dir=True, require_empty=False)
    handler = ih.Checkpoint({"model": on.model}, saver, n_saved=2, global_step_transform=lambda e, _: e.state.iteration)
    on.engine.add_event_handler(Theirs.ITERATION_COMPLETED(every=3), handler)
    on.engine.add_event_handler(Theirs.COMPLETED, lambda: on.seen.extend(sorted(p.name for p in folder.iterdir())))


def model_checkpoint(on: Setting, folder: Path) -> None:
    handler = ih.ModelCheckpoint(str(folder), "net", n_saved=None, create_dir=True, require_empty=False)
    on.engine.add_event_handler(Theirs.EPOCH_COMPLETED, handler, {"model": on.model})
    on.engine.add_event_handler(Theirs.COMPLETED, lambda: on.seen.extend(sorted(p.name for p in folder.iterdir())))


def epoch_output(on: Setting, folder: Path) -> None:
    store = ih.EpochOutputStore()
    store.attach(on.engine, "outputs")
    on.engine.add_event_handler(Theirs.EPOCH_COMPLETED, lambda e: on.seen.append(list(e.state.outputs)))


def timer(on: Setting, folder: Path) -> None:
    watch = ih.Timer(average=True)
    watch.attach(
        on.engine, start=Theirs.STARTED, resume=Theirs.ITERATION_STARTED, pause=Theirs.ITERATION_COMPLETED,
        step=Theirs.ITERATION_COMPLETED,
    )  # fmt: skip
    on.engine.add_event_handler(Theirs.COMPLETED, lambda: on.seen.extend([watch.step_count, watch.value() > 0]))


def terminate_on_nan(on: Setting, folder: Path) -> None:
    on.engine.add_event_handler(Theirs.ITERATION_COMPLETED, ih.TerminateOnNan(lambda output: output))
    on.engine.add_event_handler(Theirs.ITERATION_COMPLETED(once=3), lambda e: setattr(e.state, "output", math.nan))


def time_limit(on: Setting, folder: Path) -> None:
    on.engine.add_event_handler(Theirs.ITERATION_COMPLETED(every=2), ih.TimeLimit(1))
    on.engine.add_event_handler(Theirs.EPOCH_COMPLETED | Theirs.COMPLETED, lambda e: on.seen.append(e.state.epoch))


HANDLERS = [
    linear_cyclical, cosine, piecewise, warm_up, lr_scheduler, plateau, state_scheduler, ema, checkpoint,
    model_checkpoint, epoch_output, timer, terminate_on_nan, time_limit,
]  # fmt: skip


@pytest.mark.parametrize("attach", HANDLERS, ids=lambda attach: attach.__name__)
def test_a_handler_does_what_it_does_there(attach: Callable[..., None], tmp_path: Path) -> None:
    found = []
    for number, kind in enumerate((ignite.engine.Engine, workers.Engine)):
        setting = Setting(kind)
        attach(setting, tmp_path / str(number))
        found.append(setting.run())
    theirs, ours = found
    assert len(theirs) == len(ours)
    assert all(map(same, theirs, ours)), (theirs, ours)


def same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def test_there_are_enough_of_them() -> None:
    assert len(METRICS) + len(HANDLERS) >= 25


# ---------------------------------------------------------------- their events
def test_their_events_filters_and_combinations_fire_ours() -> None:
    seen: list[tuple[str, int]] = []
    engine = workers.Engine(lambda e, b: None)
    for name, event in {
        "every": Theirs.ITERATION_COMPLETED(every=2),
        "once": Theirs.ITERATION_COMPLETED(once=3),
        "either": Theirs.EPOCH_COMPLETED | Theirs.ITERATION_STARTED(once=1),
        "filter": Theirs.ITERATION_COMPLETED(event_filter=lambda e, count: count == 4),
    }.items():
        engine.add_event_handler(event, lambda e, name=name: seen.append((name, e.state.iteration)))
    engine.run([0, 0, 0, 0])
    assert seen == [("either", 1), ("every", 2), ("once", 3), ("every", 4), ("filter", 4), ("either", 4)]


def test_their_custom_events_are_fired_and_counted() -> None:
    class Backprop(ignite.engine.EventEnum):
        STARTED = "backprop_started"

    heard: list[int] = []
    engine = workers.Engine(lambda e, b: e.fire_event(Backprop.STARTED))
    engine.register_events(*Backprop)
    engine.add_event_handler(Backprop.STARTED(every=2), lambda e: heard.append(e.state.iteration))
    engine.run([0, 0, 0, 0])
    assert heard == [2, 4]
    assert engine.state.get_event_attrib_value(Backprop.STARTED) == 4


def test_what_is_no_event_at_all_is_still_refused() -> None:
    with pytest.raises(TypeError, match="event: expected an event, received 3"):
        workers.Engine(lambda e, b: None).add_event_handler(3, print)  # type: ignore[arg-type]
