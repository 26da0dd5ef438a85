"""One global plan out of the ranks' plans: each tensor is written once, by whom it should be, and can be read."""

from hashlib import sha256
from typing import Any

import pytest
import torch

from orchestrator.checkpoints.plan import GlobalPlan
from tests.checkpoints import written
from workers.shards import Shards, load_state, read_rank_file
from workers.storage import Storage


def shards(rank: int, **more: Any) -> Shards:
    shared = {"model": {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(4)}, "step": 7, **more}
    return Shards(shared, {"rng": rank}, rank)


def world(size: int, **more: Any) -> list[Shards]:
    return [shards(rank, **more) for rank in range(size)]


def names(plan: GlobalPlan, ranks: int) -> list[list[str]]:
    return [[item.index.fqn for item in plan.part(rank).items] for rank in range(ranks)]


def planned(size: int, spread: tuple[str, ...], **more: Any) -> list[list[str]]:
    return names(GlobalPlan({one.rank: one.plan() for one in reversed(world(size, **more))}, spread), size)


def test_what_all_ranks_have_is_written_once_by_rank_0() -> None:
    assert planned(3, ()) == [["model.weight", "model.bias"], [], []]


def test_what_is_known_to_be_equal_is_shared_out_by_size() -> None:
    state = {"a": torch.zeros(100), "b": torch.zeros(60), "c": torch.zeros(50), "d": torch.zeros(5)}
    assert planned(2, ("big",), big=state) == [["model.weight", "model.bias", "big.a", "big.d"], ["big.b", "big.c"]]


def test_only_the_entries_that_are_named_are_shared_out() -> None:
    state = {"w": torch.zeros(2)}
    assert planned(2, ("mod", "model.b"), models=state) == [["model.weight", "model.bias", "models.w"], []]
    (first, second) = planned(2, ("model",), models=state)
    assert (sorted(first), second) == (["model.weight", "models.w"], ["model.bias"])


def test_an_entry_that_is_a_tensor_itself_may_be_shared_out() -> None:
    assert planned(2, ("one", "two"), one=torch.zeros(5), two=torch.zeros(9)) == [
        ["model.weight", "model.bias", "two"],
        ["one"],
    ]


def test_what_only_some_ranks_have_is_written_by_them() -> None:
    first, second = shards(0), shards(1, only=torch.zeros(3))
    plan = GlobalPlan({0: first.plan(), 1: second.plan()}, ())
    assert names(plan, 2) == [["model.weight", "model.bias"], ["only"]]


def test_the_index_has_receipts_as_every_file_has(storage: Storage) -> None:
    parts, index = written(storage, world(2), ["model"])
    assert [receipt.path for receipt in index] == ["index.json", "data/.metadata"]
    receipts = [*index, *(receipt for part in parts.values() for receipt in part.receipts)]
    assert {receipt.path for receipt in receipts} == set(storage.files())
    for receipt in receipts:
        content = storage.read(receipt.path)
        assert (receipt.size, receipt.sha256) == (len(content), sha256(content).hexdigest())


@pytest.mark.parametrize("spread", [[], ["model"]])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_what_was_written_is_read_as_it_was(storage: Storage, size: int, spread: list[str]) -> None:
    written(storage, world(size), spread)
    state = load_state(storage)
    assert state["model"]["weight"].equal(torch.arange(6.0).reshape(2, 3))
    assert state["model"]["bias"].equal(torch.ones(4))
    assert state["step"] == 7
    assert [read_rank_file(storage, rank) for rank in range(size)] == [{"rng": rank} for rank in range(size)]
