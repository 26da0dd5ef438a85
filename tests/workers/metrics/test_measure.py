"""Metrics of one's own by three functions: measured over an epoch, merged over ranks, saved, and pickled."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import torch

from orchestrator.reduce import reduce_packs
from workers import Engine, attach_metric
from workers.metrics import empty_copy


class Range:
    """The least and the greatest number, and how many there were."""

    reduce: Mapping[str, str] = {"low": "min", "high": "max"}

    def start(self) -> dict[str, float]:
        return {"low": float("inf"), "high": -float("inf"), "count": 0}

    def update(self, numbers: dict[str, Any], seen: torch.Tensor) -> dict[str, Any]:
        return {
            "low": min(numbers["low"], seen.min()),
            "high": max(numbers["high"], seen.max()),
            "count": numbers["count"] + len(seen),
        }

    def compute(self, numbers: dict[str, Any]) -> dict[str, Any]:
        return {"width": numbers["high"] - numbers["low"], "count": numbers["count"]}


def attached() -> Engine:
    engine = Engine(lambda engine, batch: {"values": batch})
    attach_metric(engine, "range", Range(), output=lambda out: out["values"])
    return engine


def test_it_is_measured_over_each_epoch() -> None:
    engine = attached()
    batches = [torch.tensor([3.0, 1.0]), torch.tensor([5.0])]
    for _ in range(2):
        engine.run(batches, resume_from_iteration=0)
        assert engine.state.metrics["range"] == {"width": 4.0, "count": 3.0}


def test_over_ranks_its_numbers_are_put_together_by_their_rules() -> None:
    packs, engine = [], attached()
    for share in ([torch.tensor([3.0, 1.0])], [torch.tensor([-2.0]), torch.tensor([0.0])]):
        engine.run(share, resume_from_iteration=0)
        packs.append({"range": engine.attached["range"].pack()})
    empty = pickle.loads(pickle.dumps(empty_copy(engine.attached["range"].metric)))  # as it comes to the driver
    assert reduce_packs(packs, {"range": empty}) == {"range/width": 5.0, "range/count": 4.0}


def test_in_the_middle_of_an_epoch_it_is_saved_with_the_engine() -> None:
    first = attached()
    first.run([torch.tensor([3.0]), torch.tensor([9.0])], max_iters=1)
    second = attached()
    second.attached["range"].load_state_dict(first.attached["range"].state_dict())
    second.attached["range"].metric.update(torch.tensor([4.0]))
    assert second.attached["range"].metric.compute()["width"] == 1.0
