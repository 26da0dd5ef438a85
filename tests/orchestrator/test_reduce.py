"""P6: a reduced metric is what one process computes on the same data, however batches are shared out to ranks."""

import math
import pickle

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchmetrics import (
    CatMetric,
    MaxMetric,
    MeanMetric,
    MeanSquaredError,
    Metric,
    MetricCollection,
    MinMetric,
    PearsonCorrCoef,
    R2Score,
    SumMetric,
)
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy
from torchmetrics.wrappers import LambdaInputTransformer

from orchestrator.errors import TrainingError
from orchestrator.reduce import reduce_numbers, reduce_packs
from workers.engine import Engine
from workers.metrics import attach_metric, empty_copy
from workers.parcels import MetricPack, Number


class MeanOfBatchMeans(Metric):
    """A state that is a mean over updates, as a user might write it."""

    def __init__(self, **options):
        super().__init__(**options)
        self.add_state("mean", torch.tensor(0.0), dist_reduce_fx="mean")
        self.add_state("seen", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, value):
        self.seen = self.seen + 1
        self.mean = self.mean + (value.mean() - self.mean) / self.seen

    def compute(self):
        return self.mean


class Spread(Metric):
    """States with rules of their own: joined tensors, and a function of the stacked values."""

    def __init__(self, **options):
        super().__init__(**options)
        self.add_state("low", torch.tensor(math.inf), dist_reduce_fx=lambda stacked: stacked.amin(0))
        self.add_state("all", [], dist_reduce_fx=None)
        self.add_state("ragged", [], dist_reduce_fx=lambda parts: [torch.cat(parts)])
        self.add_state("tail", torch.zeros(0), dist_reduce_fx="cat")

    def update(self, value):
        self.low = torch.minimum(self.low, value.min())
        self.all.append(value.max())
        self.ragged.append(value)
        self.tail = torch.cat([self.tail, value])

    def compute(self):
        spread = torch.stack(list(self.all)).max() - self.low
        return {"spread": spread, "numbers": len(torch.cat(self.ragged)), "tail": self.tail}


def pair(batch):
    return batch["x"], batch["y"]


def classes(batch):
    return (batch["x"] * 2).long().abs() % 3, (batch["y"] * 2).long().abs() % 3


def scores(batch):
    return batch["x"].sigmoid(), (batch["y"] > 0).long()


def values(batch):
    return batch["x"]


CASES = {
    "micro": (lambda: MulticlassAccuracy(3, average="micro"), classes),
    "macro": (lambda: MulticlassAccuracy(3, average="macro"), classes),
    "each": (lambda: MulticlassAccuracy(3, average=None), classes),
    "auroc": (BinaryAUROC, scores),
    "binned": (lambda: BinaryAUROC(thresholds=5), scores),
    "mse": (MeanSquaredError, pair),
    "pearson": (PearsonCorrCoef, pair),
    "r2": (R2Score, pair),
    "mean": (MeanMetric, values),
    "sum": (SumMetric, values),
    "min": (MinMetric, values),
    "max": (MaxMetric, values),
    "cat": (CatMetric, values),
    "custom": (MeanOfBatchMeans, values),
    "spread": (Spread, values),
    "wrapper": (lambda: LambdaInputTransformer(MeanSquaredError(), torch.square), pair),
    "collection": (lambda: MetricCollection([MeanSquaredError(), PearsonCorrCoef()]), pair),
    "sum of two": (lambda: SumMetric() + MaxMetric(), values),
}


@st.composite
def shares(draw):
    """Batches in their order, and for each the rank that gets it; ranks may get none."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=2, max_size=7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    batches = [{name: torch.randint(-12, 13, (n,), generator=generator) / 4 for name in "xy"} for n in sizes]
    world = draw(st.integers(1, 5))
    ranks = draw(st.lists(st.integers(0, world - 1), min_size=len(sizes), max_size=len(sizes)))
    return batches, world, sorted(ranks)


def evaluated(case, batches, *, shared=False):
    """An engine that measured these batches, as a rank or as the only process."""
    make, output = CASES[case]
    engine = Engine(lambda engine, batch: batch)
    attach_metric(engine, "m", make(), output=output)
    for attached in engine.attached.values():
        attached.shared = lambda: shared
    if batches:
        engine.run(batches)
    return engine


def constant(part):
    """Whether a rank saw one value only, of which torchmetrics' own merge of correlations makes nan."""
    return part != [] and any(len(set(torch.cat([batch[name] for batch in part]).tolist())) == 1 for name in "xy")


def packs_of(engine):
    return pickle.loads(pickle.dumps({name: thing.pack() for name, thing in engine.attached.items() if thing.updated}))


def empty_of(engine):
    return {name: empty_copy(thing.metric) for name, thing in engine.attached.items()}


def flat(metrics):
    found = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            found |= flat({f"{name}/{part}": inner for part, inner in value.items()})
        else:
            found[name] = value.tolist() if isinstance(value, torch.Tensor) else value
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")  # torchmetrics warns of parts too small to say anything
@pytest.mark.parametrize("case", CASES)
@settings(max_examples=20)
@given(shares())
def test_a_reduced_metric_is_that_of_a_single_process(case, share):
    batches, world, owners = share
    single = evaluated(case, batches)
    parts = [[batch for batch, owner in zip(batches, owners, strict=True) if owner == rank] for rank in range(world)]
    assume(case not in {"pearson", "collection"} or not any(map(constant, parts)))
    packs = [packs_of(evaluated(case, part, shared=True)) for part in parts]
    reduced, expected = reduce_packs(packs, empty_of(single)), flat(single.state.metrics)
    assert reduced.keys() == expected.keys()
    for name, value in expected.items():
        assert reduced[name] == pytest.approx(value, rel=1e-4, abs=1e-5, nan_ok=True)


def test_reducing_again_gives_the_same_since_the_empty_copies_stay_empty():
    engine = evaluated("spread", [{"x": torch.tensor([1.0, 4.0])}])
    packs, empty = [packs_of(engine)], empty_of(engine)
    expected = {"m/spread": 3.0, "m/numbers": 2, "m/tail": [1.0, 4.0]}
    assert reduce_packs(packs, empty) == reduce_packs(packs, empty) == expected


def test_a_metric_that_no_rank_updated_is_left_out():
    assert reduce_packs([{}, {}], empty_of(evaluated("mean", []))) == {}


def test_metrics_and_numbers_come_in_the_order_of_the_ranks():
    engine = evaluated("mean", [{"x": torch.tensor([1.0])}])
    reduced = reduce_packs([{"b": Number(value=1.0)}, {**packs_of(engine), "a": Number(value=2.0)}], empty_of(engine))
    assert list(reduced.items()) == [("b", 1.0), ("m", 1.0), ("a", 2.0)]


def test_a_metric_that_can_not_be_computed_is_named():
    engine = evaluated("pearson", [{"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([1.0, 2.0])}])
    broken = {"m": MetricPack(parts={"": ({}, 1)})}
    with pytest.raises(
        TrainingError, match=r"^metric 'm' \(PearsonCorrCoef\) could not be computed over all ranks: Key"
    ):
        reduce_packs([broken], empty_of(engine))


def reduced_numbers(rule, *pairs):
    numbers = [{"n": Number(value=value, count=count, reduce=rule)} for value, count in pairs]
    return reduce_numbers(numbers)["n"]


FLOATS = st.floats(-100, 100)
PAIRS = st.lists(st.tuples(FLOATS, st.integers(0, 9)), min_size=1, max_size=5)


@given(PAIRS)
def test_a_mean_is_that_of_all_samples(pairs):
    samples = [value for value, count in pairs for _ in range(count)]
    expected = sum(samples) / len(samples) if samples else math.nan
    assert reduced_numbers("mean", *pairs) == pytest.approx(expected, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize(("rule", "function"), [("sum", sum), ("min", min), ("max", max)])
@given(PAIRS)
def test_sum_min_and_max_ignore_the_counts(rule, function, pairs):
    assert reduced_numbers(rule, *pairs) == function(value for value, _ in pairs)


def test_a_nan_of_a_rank_without_samples_does_not_spoil_the_mean():
    assert reduced_numbers("mean", (math.nan, 0), (2.0, 3)) == 2.0


def test_numbers_that_only_some_ranks_have_are_reduced_over_those():
    assert reduce_numbers([{"a": Number(value=1.0)}, {"a": Number(value=3.0), "b": Number(value=5.0)}]) == {
        "a": 2.0,
        "b": 5.0,
    }


@pytest.mark.parametrize("rule", ["min", "max"])
def test_a_nan_of_any_rank_is_that_of_the_extreme(rule):
    for pairs in (((math.nan, 1), (2.0, 1)), ((2.0, 1), (math.nan, 1))):
        assert math.isnan(reduced_numbers(rule, *pairs))
