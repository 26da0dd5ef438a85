"""One rank's part of a checkpoint: what is frozen, written and loaded again, and what is refused."""

import hashlib
from collections import OrderedDict
from enum import IntEnum

import numpy as np
import pytest
import torch

from orchestrator.checkpoints.plan import GlobalPlan
from workers.errors import ProgramError
from workers.shards import FrozenState, load_state, rank_file, read_rank_file


def save(folder, *states):
    """What driver and ranks do together; gives what each rank wrote."""
    for name in ("data", "ranks"):
        (folder / name).mkdir()
    plan = GlobalPlan(folder, {state.rank: state.plan() for state in states})
    written = {state.rank: state.write(str(folder), plan.part(state.rank)) for state in states}
    plan.finish({rank: part.results for rank, part in written.items()})
    return written


def round_trip(folder, shared):
    save(folder, FrozenState(shared, {}, 0))
    return load_state(str(folder), read_rank_file(str(folder), 0)["structure"])


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def trained(optimizer_kind, **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    optimizer = optimizer_kind(model.parameters(), lr=0.1, **options)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).sum().backward()
        optimizer.step()
        scheduler.step()
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


KINDS = [(torch.optim.Adam, {"amsgrad": True}), (torch.optim.SGD, {"momentum": 0.9}), (torch.optim.SGD, {})]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_models_optimizers_and_schedulers_come_back(tmp_path, kind, options):
    entries = trained(kind, **options)
    loaded = round_trip(tmp_path, {name: entry.state_dict() for name, entry in entries.items()})
    fresh = trained(kind, **options)
    torch.nn.init.zeros_(fresh["model"][0].weight)
    for name, entry in fresh.items():
        entry.load_state_dict(loaded[name])
        assert equal(dict(entry.state_dict()), dict(entries[name].state_dict()))


STATES = [
    {"a": (1, [2.5, (None, True)], "text", b"bytes"), 3: {}, "empty": [(), [], ""]},
    {"a": [torch.arange(3), (torch.zeros(2, 2), torch.tensor(4.0))], 0: {1: torch.ones(1)}},
    {"a.b": {"c": torch.zeros(1)}, "a": {"b.c": torch.ones(1)}, "a.b.c": torch.full((1,), 2.0)},
    {"half": torch.ones(2, dtype=torch.bfloat16), "bool": torch.tensor([True]), "empty": torch.zeros(0, 3)},
    {},
]


@pytest.mark.parametrize("state", STATES)
def test_nested_containers_come_back_as_they_were(tmp_path, state):
    assert equal(round_trip(tmp_path, state), state)


def test_other_mappings_and_numpy_come_back_as_plain_values(tmp_path):
    state = {"ordered": OrderedDict(a=1), "number": np.float64(0.5), "count": np.int32(3), "array": np.arange(3)}
    expected = {"ordered": {"a": 1}, "number": 0.5, "count": 3, "array": torch.arange(3)}
    assert equal(round_trip(tmp_path, state), expected)


class Mode(IntEnum):
    FAST = 1


REFUSED = [
    ({"model": {"deep": [0, {1, 2}]}}, "model.deep.1", "builtins.set"),
    ({"model": print}, "model", "builtins.builtin_function_or_method"),
    ({"model": {"mode": Mode.FAST}}, "model.mode", f"{__name__}.Mode"),
    ({"model": {Mode.FAST: 1}}, "model, key <Mode.FAST: 1>", f"{__name__}.Mode"),
    ({"model": {(1, 2): 1}}, "model, key (1, 2)", "builtins.tuple"),
]


@pytest.mark.parametrize(("state", "path", "kind"), REFUSED)
def test_what_could_not_be_read_again_is_refused_with_its_path(state, path, kind):
    with pytest.raises(ProgramError) as error:
        FrozenState(state, {}, 0)
    assert str(error.value) == (
        f"checkpoint: state {path!r}: expected tensors, numbers, texts and containers of them, "
        f"received {kind}; leave it out of state_dict(), or give its parts"
    )


def test_what_is_a_ranks_own_is_told_apart_in_a_refusal():
    with pytest.raises(ProgramError, match=r"^checkpoint: state 'own\.engines': "):
        FrozenState({}, {"engines": object()}, 0)


def test_what_all_ranks_share_is_written_once_and_what_is_their_own_by_each(tmp_path):
    shared = {"w": torch.arange(4.0)}
    written = save(tmp_path, *(FrozenState(shared, {"rank": rank, "t": torch.ones(2)}, rank) for rank in (0, 1, 2)))
    assert [[receipt.path for receipt in written[rank].receipts] for rank in written] == [
        ["data/__0_0.distcp", "ranks/rank-0000.pt"],
        ["ranks/rank-0001.pt"],
        ["ranks/rank-0002.pt"],
    ]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".metadata", "__0_0.distcp"]
    assert [read_rank_file(str(tmp_path), rank)["own"]["rank"] for rank in written] == [0, 1, 2]
    structure = read_rank_file(str(tmp_path), 2)["structure"]
    assert equal(load_state(str(tmp_path), structure), shared)


def test_receipts_tell_size_and_hash_of_every_file(tmp_path):
    written = save(tmp_path, FrozenState({"w": torch.arange(4.0)}, {}, 0))
    for receipt in written[0].receipts:
        content = (tmp_path / receipt.path).read_bytes()
        assert (receipt.size, receipt.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_python_3_10_hashes_the_same(tmp_path, monkeypatch):
    monkeypatch.delattr(hashlib, "file_digest", raising=False)
    test_receipts_tell_size_and_hash_of_every_file(tmp_path)


def test_a_ranks_file_that_is_not_plain_is_not_read(tmp_path):
    (tmp_path / "ranks").mkdir()
    torch.save({"structure": Mode.FAST}, tmp_path / rank_file(0))
    with pytest.raises(Exception, match="Weights only load failed"):
        read_rank_file(str(tmp_path), 0)
