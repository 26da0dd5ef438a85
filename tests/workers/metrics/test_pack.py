"""Packs: what of metrics and outputs travels to the driver."""

import pytest
import torch
from torchmetrics import CatMetric, MaxMetric, MeanMetric, MinMaxMetric, SumMetric

from workers.metrics import empty_copy, pack_metric, pack_numbers
from workers.parcels import Number


def updated(metric, *values):
    for value in values:
        metric.update(value)
    return metric


def test_a_metric_travels_as_its_states_and_updates():
    ((states, updates),) = pack_metric(updated(MeanMetric(), 1.0, 3.0)).parts.values()
    assert {name: value.item() for name, value in states.items()} == {"mean_value": 4.0, "weight": 2.0}
    assert updates == 2


@pytest.mark.parametrize(
    ("metric", "paths"),
    [(MinMaxMetric(MeanMetric()), {"", "_base_metric"}), (SumMetric() + MaxMetric(), {"", "metric_a", "metric_b"})],
)
def test_the_metrics_inside_travel_too(metric, paths):
    assert set(pack_metric(updated(metric, 1.0)).parts) == paths


@pytest.mark.parametrize("metric", [SumMetric(), CatMetric()])
def test_the_next_update_does_not_change_what_is_on_its_way(metric):
    parts = pack_metric(updated(metric, 1.0)).parts
    before = repr(parts)
    updated(metric, 5.0)
    assert repr(parts) == before


def test_an_empty_copy_leaves_the_original_alone():
    metric = updated(SumMetric(), 2.0)
    copy = empty_copy(metric)
    assert (copy.update_called, copy.sum_value.item()) == (False, 0.0)
    assert metric.compute() == 2.0


def numbers_of(values, **options):
    return {name: number.value for name, number in pack_numbers(values, **options).items()}


@pytest.mark.parametrize("value", [2, 2.0, torch.tensor(2), torch.tensor([[2.0]], requires_grad=True)])
def test_a_single_number_is_called_output(value):
    assert numbers_of(value) == {"output": 2.0}


def test_numbers_are_named_by_their_path():
    values = {"loss": 1, "parts": {"a": 2.0, "b": [3, torch.tensor(4)]}, 5: (True, None)}
    assert numbers_of(values) == {"loss": 1, "parts/a": 2, "parts/b/0": 3, "parts/b/1": 4, "5/0": 1}


@pytest.mark.parametrize("value", ["text", None, torch.zeros(2), torch.tensor(1j), 1j, object(), [0.0] * 65])
def test_what_is_no_number_is_left_out(value):
    assert pack_numbers({"it": value}) == {}


def test_the_count_is_the_weight_of_every_number():
    assert pack_numbers([1.0, torch.tensor(2)], count=3) == {
        "0": Number(value=1.0, count=3),
        "1": Number(value=2.0, count=3),
    }


def test_a_number_with_a_rule_keeps_it():
    number = Number(value=7, count=2, reduce="sum")
    assert pack_numbers({"tokens": number}, count=3) == {"tokens": number}


def test_at_most_64_numbers_are_taken():
    assert list(pack_numbers(dict.fromkeys(map(str, range(100)), 1.0))) == [str(n) for n in range(64)]


def test_tensors_elsewhere_are_left_out_where_reading_would_wait():
    value = {"here": torch.tensor(1.0), "there": torch.tensor(1.0, device="meta")}
    assert numbers_of(value, on_cpu=True) == {"here": 1.0}


def test_what_contains_itself_is_looked_at_to_a_bound_only():
    mapping, sequence = {"loss": 1.0}, [2.0]
    mapping["me"] = mapping
    sequence += [sequence] * 60
    assert pack_numbers(mapping)["loss"] == Number(value=1.0)
    assert pack_numbers({"wide": sequence, "after": 1.0})["wide/0"] == Number(value=2.0)
    assert pack_numbers({"text": ["no number", [["no number"] * 64] * 64] * 2}) == {}


def test_what_no_float_can_hold_is_left_out():
    assert numbers_of({"big": 10**400, "loss": 1}) == {"loss": 1.0}
