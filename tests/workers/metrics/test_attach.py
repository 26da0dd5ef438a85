"""Metrics on an engine: what they are given, when they are reset and computed, how they come back after a resume."""

from collections import namedtuple

import pytest
import torch
from torchmetrics import (
    CatMetric,
    MaxMetric,
    MeanMetric,
    MeanSquaredError,
    Metric,
    MetricCollection,
    MinMaxMetric,
    PearsonCorrCoef,
    R2Score,
    SumMetric,
)
from torchmetrics.aggregation import RunningMean, RunningSum
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.wrappers import LambdaInputTransformer, Running

from workers.engine import Engine
from workers.errors import ProgramError
from workers.events import Events
from workers.metrics import attach_metric

DATA = [1.0, 3.0, 8.0]


def engine_with(metric, **options):
    engine = Engine(lambda engine, batch: batch)
    attach_metric(engine, "m", metric, **options)
    return engine


@pytest.mark.parametrize(("word", "value"), [("mean", 4.0), ("sum", 12.0), ("min", 1.0), ("max", 8.0)])
def test_a_word_names_a_plain_metric(word, value):
    assert engine_with(word).run(DATA).metrics == {"m": value}


def test_a_metric_begins_anew_every_epoch():
    engine, values = engine_with("sum"), []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: values.append(e.state.metrics["m"]))
    engine.run(DATA, max_epochs=2)
    assert values == [12.0, 12.0]


def test_handlers_of_the_user_see_the_metric_of_the_epoch_that_just_ended():
    engine, seen = Engine(lambda engine, batch: batch), []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: seen.append(dict(e.state.metrics)))
    attach_metric(engine, "m", "sum")
    engine.run(DATA)
    assert seen == [{"m": 12.0}]


def test_a_tuple_gives_positional_arguments():
    engine = engine_with(MeanSquaredError(), output=lambda x: (torch.tensor([x]), torch.tensor([0.0])))
    assert engine.run([1.0, 3.0]).metrics["m"] == 5.0


def test_a_named_tuple_gives_positional_arguments_too():
    pair = namedtuple("Pair", "value weight")
    engine = engine_with(MeanMetric(), output=lambda x: pair(x, weight=x))
    assert engine.run([1.0, 3.0]).metrics["m"] == 2.5


def test_a_mapping_gives_keyword_arguments():
    engine = engine_with(MeanMetric(), output=lambda x: {"value": x, "weight": 2 if x == 1 else 1})
    assert engine.run([1.0, 4.0]).metrics["m"] == 2.0


def test_a_list_is_one_argument():
    engine = engine_with(CatMetric(), output=lambda x: [torch.tensor(x), torch.tensor(-x)])
    assert engine.run([1.0, 2.0]).metrics["m"].tolist() == [1.0, -1.0, 2.0, -2.0]


def test_what_needs_gradients_is_taken_without_them():
    weight = torch.tensor(2.0, requires_grad=True)
    engine = engine_with("sum", output=lambda x: weight * x)
    assert engine.run([1.0, 2.0]).metrics["m"] == 6.0
    assert not engine.attached["m"].metric.sum_value.requires_grad


def test_a_collection_gives_a_name_to_each_member():
    collection = MetricCollection({"mse": MeanSquaredError(), "r": PearsonCorrCoef()})
    engine = engine_with(collection, output=lambda x: (torch.tensor([x, 0.0]), torch.tensor([x, 0.0])))
    assert engine.run(DATA).metrics == {"m/mse": 0.0, "m/r": pytest.approx(1.0)}


def test_a_collection_stays_the_users():
    collection = MetricCollection([MeanSquaredError()])
    engine = engine_with(collection, output=lambda x: (torch.tensor([x]), torch.tensor([0.0])))
    assert engine.run([2.0]).metrics == {"m/MeanSquaredError": 4.0}
    assert not collection["MeanSquaredError"].update_called


def test_several_values_of_one_metric_stay_apart():
    engine = engine_with(
        MulticlassAccuracy(3, average=None), output=lambda x: (torch.tensor([0, 1]), torch.tensor([0, 2]))
    )
    assert engine.run([1]).metrics["m"].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(("output", "value"), [(float, 2.5), (torch.tensor, 2.5), (lambda x: torch.tensor([x]), 2.5)])
def test_the_mean_of_a_batch_stands_for_its_samples(output, value):
    sizes = iter([3, 1])
    engine = engine_with("mean", output=output)
    engine.attached["m"].samples = lambda: next(sizes)
    assert engine.run([2.0, 4.0]).metrics["m"] == value


def test_several_values_at_once_are_not_weighted():
    engine = engine_with("mean", output=lambda x: torch.tensor([x, x]))
    engine.attached["m"].samples = lambda: 5
    engine.run([2.0])
    assert engine.attached["m"].metric.weight == 2.0


def test_a_stand_in_batch_counts_for_nothing():
    sizes = iter([2, 0])
    engine = engine_with("max")
    engine.attached["m"].samples = lambda: next(sizes)
    assert engine.run([1.0, 100.0]).metrics["m"] == 1.0


def test_an_epoch_of_stand_ins_gives_no_value():
    engine = engine_with("max")
    engine.attached["m"].samples = lambda: 0
    assert engine.run(DATA).metrics == {}
    assert not engine.attached["m"].updated


def test_a_wrapper_gives_its_values():
    engine = engine_with(LambdaInputTransformer(MeanMetric(), float))
    assert engine.run(DATA).metrics["m"] == 4.0
    assert engine.attached["m"].updated


def test_a_sum_of_metrics_gives_its_value_and_forgets_it():
    engine = engine_with(SumMetric() + MaxMetric())
    assert engine.run(DATA).metrics["m"] == 20.0
    engine.attached["m"].reset()
    assert not engine.attached["m"].updated


@pytest.mark.parametrize(
    "metric", [MeanMetric(), LambdaInputTransformer(MeanMetric(), float), MaxMetric() + MeanMetric()]
)
def test_no_metric_inside_starts_a_collective(metric):
    engine = engine_with(metric)
    inner = [module for module in engine.attached["m"].metric.modules() if hasattr(module, "_to_sync")]
    assert inner
    assert not any(module._to_sync or module.sync_on_compute for module in inner)


def correlated(x):
    return torch.tensor([x, x + 1]), torch.tensor([x, -x])


def test_a_part_too_small_for_a_value_is_an_error_only_where_it_is_the_whole():
    engine = engine_with(R2Score(), output=lambda x: (torch.tensor([x]), torch.tensor([x])))
    with pytest.raises(ValueError, match="at least two samples"):
        engine.run([1.0])
    engine.attached["m"].shared = lambda: True
    engine.state.metrics["m"] = 0.5  # of an earlier epoch
    assert engine.run([1.0], resume_from_iteration=0).metrics == {}
    assert engine.attached["m"].updated


RESUMABLE = [
    (MeanMetric(), None),
    (CatMetric(), None),
    (LambdaInputTransformer(MeanMetric(), float), None),
    (SumMetric() + MaxMetric(), None),
    (PearsonCorrCoef(), correlated),
    (MulticlassAccuracy(3), lambda x: (torch.tensor([int(x) % 3]), torch.tensor([0]))),
]


def plain(value):
    return value.tolist() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize(("metric", "output"), RESUMABLE)
def test_an_epoch_that_is_resumed_in_its_middle_has_the_same_metric(metric, output):
    undisturbed = engine_with(metric.clone(), output=output).run(DATA).metrics["m"]
    first, second = engine_with(metric.clone(), output=output), engine_with(metric.clone(), output=output)
    first.add_event_handler(Events.ITERATION_COMPLETED(once=2), first.interrupt)
    first.run(DATA)
    saved = first.state_dict()
    for _ in range(2):  # again: going on must not have changed what was saved
        second.load_state_dict(saved)
        resumed = second.run(Seekable(DATA), max_epochs=1).metrics["m"]
        assert plain(resumed) == pytest.approx(plain(undisturbed))


class Seekable(list):
    place = 0

    def seek(self, iteration):
        self.place = iteration

    def __iter__(self):
        return iter(self[self.place :])


def test_a_value_that_was_computed_is_not_kept_over_a_load():
    engine = engine_with("sum")
    engine.run([1.0])
    saved = engine.attached["m"].state_dict()
    engine.run([5.0], resume_from_iteration=0)
    engine.attached["m"].load_state_dict(saved)
    assert engine.attached["m"].metric.compute() == 1.0


def test_a_word_that_is_not_known_is_an_error():
    with pytest.raises(
        ValueError, match=r"^attach_metric\('m'\): metric: expected one of mean, sum, min, max, received "
    ):
        engine_with("median")


def test_what_is_no_metric_is_an_error():
    text = (
        r"^attach_metric\('m'\): metric: expected a torchmetrics metric or collection, or one of 'mean', 'sum', 'min', "
        r"'max', received 3 \(int\); a function of yours goes to output=$"
    )
    with pytest.raises(TypeError, match=text):
        engine_with(3)


def test_a_name_that_is_taken_is_an_error():
    engine = engine_with("mean")
    with pytest.raises(ValueError, match=r"^attach\('m'\): expected a name that is free, .*; choose another$"):
        attach_metric(engine, "m", "sum")


@pytest.mark.parametrize("name", ["", "\x00", "a\nb", 5, None])
def test_a_name_that_cant_be_one_is_an_error(name):
    with pytest.raises(ValueError, match=r"^attach_metric\(name\): expected a text of printable characters, received "):
        attach_metric(Engine(lambda engine, batch: batch), name, "mean")


def test_one_object_under_two_names_is_an_error_also_inside_another():
    metric = MeanMetric()
    engine = engine_with(metric)
    text = (
        r"^attach_metric\('n'\): metric: expected one that is attached once, received a {} that this engine has as 'm'"
    )
    with pytest.raises(ValueError, match=text.format("MeanMetric")):
        attach_metric(engine, "n", metric)
    with pytest.raises(ValueError, match=text.format("CompositionalMetric")):
        attach_metric(engine, "n", metric + SumMetric())
    attach_metric(engine, "n", metric.clone(), output=lambda out: out * 100)
    assert engine.run([1.0, 3.0]).metrics == {"m": 2.0, "n": 200.0}


class Silent(Metric):
    """A metric that never counts its updates, as some wrappers do."""

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.update = self.quietly

    def update(self, value): ...

    def quietly(self, value):
        self.total += value

    def compute(self):
        return self.total


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric Silent:UserWarning")
def test_a_metric_that_does_not_count_its_updates_has_its_value_all_the_same():
    engine = engine_with(Silent())
    assert engine.run([1.0, 2.0]).metrics == {"m": 3.0}
    saved = engine.attached["m"].state_dict()
    engine.attached["m"].reset()
    assert not engine.attached["m"].updated
    engine.attached["m"].load_state_dict(saved)
    assert engine.attached["m"].updated


@pytest.mark.parametrize(
    ("metric", "kind"),
    [
        (RunningMean(3), "RunningMean"),
        (Running(SumMetric(), 3), "Running"),
        (MinMaxMetric(MeanMetric()), "MinMaxMetric"),
        (LambdaInputTransformer(RunningSum(3), float), "RunningSum"),
        (SumMetric() + RunningSum(3), "RunningSum"),
    ],
)
def test_what_depends_on_the_order_of_updates_is_refused(metric, kind):
    with pytest.raises(ValueError, match="merged exactly") as caught:
        engine_with(metric)
    assert str(caught.value) == (
        "attach_metric('m'): metric: expected one whose states of several ranks can be merged exactly, received "
        f"{kind}, which depends on the order of all updates; attach the metric inside, and follow its values in a "
        "handler of EPOCH_COMPLETED"
    )


def test_an_output_function_that_fails_is_told_with_its_metric_and_what_the_step_returned():
    engine = Engine(lambda engine, batch: None)
    attach_metric(engine, "loss", "mean", output=lambda out: out["loss"])
    with pytest.raises(ProgramError) as caught:
        engine.run([1.0])
    assert str(caught.value) == (
        "metric 'loss': output= raised TypeError: 'NoneType' object is not subscriptable, on what the step returned: "
        "None; does it end with return?"
    )
    assert isinstance(caught.value.__cause__, TypeError)
