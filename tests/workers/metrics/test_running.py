"""Running averages: over any number of ranks that of one process; they go on over epochs and resumes."""

from __future__ import annotations

import random
from typing import Any

import cloudpickle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.reduce import reduce_packs
from workers import Engine, Program, Worker, attach_metric
from workers.building import build_program
from workers.metrics import RunningAverage
from workers.orders import Build
from workers.parcels import TRAINER
from workers.rank import Membership
from workers.reports import Reports


def engine(worker: Worker, alpha: float) -> Engine:
    """Each iteration is a batch of so many samples, whose mean is its output; without any it is a stand-in."""

    def build(worker: Worker) -> Program:
        def step(engine: Engine, batch: list[float]) -> float:
            worker.batch_size = len(batch)
            return sum(batch) / len(batch) if batch else float("nan")

        made = Engine(step)
        attach_metric(made, "loss", RunningAverage(alpha))
        return Program(engines={TRAINER: made})

    order = Build(
        program=cloudpickle.dumps(build), config={}, seed=0, membership=Membership(generation=0, rank=0, world_size=1)
    )
    return build_program(order, worker).engines[TRAINER]


@given(
    world=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
)
def test_over_ranks_it_is_that_of_one_process_on_all_samples(world: int, seed: int, lengths: list[int]) -> None:
    dealt = random.Random(seed)
    batches = [[dealt.uniform(-1, 1) for _ in range(length)] for length in lengths]
    ranks: list[list[list[float]]] = [[[] for _ in batches] for _ in range(world)]
    for number, batch in enumerate(batches):
        for value in batch:
            ranks[dealt.randrange(world)][number].append(value)
    packs = []
    for share in ranks:
        worker = Worker()
        made = engine(worker, 0.7)
        made.run(share)
        packs.append(Reports().packs(made))
    whole = engine(Worker(), 0.7).run(batches).metrics["loss"]
    assert reduce_packs(packs, {})["loss"] == pytest.approx(whole)


def attached(alpha: float = 0.5) -> Engine:
    made = Engine(lambda engine, batch: batch)
    attach_metric(made, "loss", RunningAverage(alpha))
    return made


def test_it_goes_on_over_epochs_and_over_a_resume() -> None:
    whole = attached().run([1.0, 2.0], max_epochs=3).metrics["loss"]
    assert whole == pytest.approx((1 / 32 + 2 / 16 + 1 / 8 + 2 / 4 + 1 / 2 + 2) / (63 / 32))
    first = attached()
    first.run([1.0, 2.0], max_epochs=1)
    second = attached()
    second.load_state_dict(first.state_dict())
    assert second.run([1.0, 2.0], max_epochs=3).metrics["loss"] == whole


def test_a_tensor_stays_one_so_that_nobody_waits_for_its_device() -> None:
    metrics = attached().run([torch.tensor(1.0, requires_grad=True), torch.tensor(4.0)]).metrics
    assert isinstance(metrics["loss"], torch.Tensor)
    assert not metrics["loss"].requires_grad
    assert metrics["loss"].item() == 3.0


@pytest.mark.parametrize("alpha", [1.0, -0.1, 1])
def test_a_share_that_is_none_is_refused(alpha: Any) -> None:
    with pytest.raises(ValueError, match=r"RunningAverage\(alpha\): expected a number from 0 to 1"):
        RunningAverage(alpha)
