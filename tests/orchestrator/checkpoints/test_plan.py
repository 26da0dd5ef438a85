"""One global plan out of the ranks' plans: what is replicated is written once, and all of it can be read."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.checkpoints.plan import GlobalPlan
from workers.shards import FrozenState, load_state, read_rank_file


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    for part in ("data", "ranks"):
        (tmp_path / part).mkdir()
    return tmp_path


def frozen(rank: int) -> FrozenState:
    shared = {"model": {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(4)}, "step": 7}
    return FrozenState(shared, {"rng": rank}, rank)


def write(staging: Path, world: int) -> tuple[GlobalPlan, Mapping[int, Any]]:
    ranks = {rank: frozen(rank) for rank in range(world)}
    plan = GlobalPlan(staging, {rank: ranks[rank].plan() for rank in reversed(ranks)})
    return plan, {rank: one.write(str(staging), plan.part(rank)) for rank, one in ranks.items()}


def test_what_all_ranks_have_is_written_once_by_rank_0(staging: Path) -> None:
    plan, _ = write(staging, 3)
    assert [len(plan.part(rank).items) for rank in range(3)] == [2, 0, 0]
    assert len(list((staging / "data").iterdir())) == 1


def test_the_index_has_a_receipt_as_every_file_has(staging: Path) -> None:
    plan, written = write(staging, 2)
    index = plan.finish({rank: part.results for rank, part in written.items()})
    content = (staging / "data" / ".metadata").read_bytes()
    assert (index.path, index.size, index.sha256) == ("data/.metadata", len(content), sha256(content).hexdigest())
    vouched = {index.path, *(receipt.path for part in written.values() for receipt in part.receipts)}
    assert vouched == {str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file()}


def test_what_was_written_is_read_as_it_was(staging: Path) -> None:
    plan, written = write(staging, 2)
    plan.finish({rank: part.results for rank, part in written.items()})
    own = read_rank_file(str(staging), 1)
    state = load_state(str(staging), own["structure"])
    assert state["model"]["weight"].equal(torch.arange(6.0).reshape(2, 3))
    assert state["model"]["bias"].equal(torch.ones(4))
    assert (state["step"], own["own"]) == (7, {"rng": 1})
