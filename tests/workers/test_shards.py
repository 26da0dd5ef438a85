"""One rank's part of a checkpoint: what is copied, written and loaded again, and what is refused."""

import hashlib
from collections import OrderedDict
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.checkpoints.plan import GlobalPlan
from tests.checkpoints import equal, written
from workers.errors import ProgramError
from workers.folder import Folder
from workers.locations import storage_at
from workers.shards import SHARED, Shards, load_state, rank_file, read_rank_file, read_structure
from workers.structure import DEPTH


@pytest.fixture
def place(tmp_path):
    return storage_at(tmp_path / "staging")


def round_trip(place, shared):
    written(place, [Shards(shared, {}, 0)])
    return load_state(place)


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


# ---------------------------------------------------------------- there and back
KINDS = [(torch.optim.Adam, {"amsgrad": True}), (torch.optim.SGD, {"momentum": 0.9}), (torch.optim.SGD, {})]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_models_optimizers_and_schedulers_come_back(place, kind, options):
    entries = trained(kind, **options)
    loaded = round_trip(place, {name: entry.state_dict() for name, entry in entries.items()})
    fresh = trained(kind, **options)
    torch.nn.init.zeros_(fresh["model"][0].weight)
    for name, entry in fresh.items():
        entry.load_state_dict(loaded[name])
        assert equal(dict(entry.state_dict()), dict(entries[name].state_dict()))


STATES = [
    {"a": (1, [2.5, (None, True)], "text", b"bytes"), "3": {3: {}}, "empty": [(), [], ""]},
    {"a": [torch.arange(3), (torch.zeros(2, 2), torch.tensor(4.0))], "0": {1: torch.ones(1)}},
    {"a.b": {"c": torch.zeros(1)}, "a": {"b.c": torch.ones(1)}, "a.b.c": torch.full((1,), 2.0)},
    {"half": torch.ones(2, dtype=torch.bfloat16), "bool": torch.tensor([True]), "empty": torch.zeros(0, 3)},
    {"strided": torch.arange(6.0).reshape(2, 3).t(), "slice": torch.arange(9)[::2], "view": torch.ones(4, 4)[1]},
    {"nan": torch.tensor([float("nan")]).nan_to_num(3.0), "complex": torch.ones(2, dtype=torch.complex64)},
    {"scalar": torch.tensor(1.5, dtype=torch.float64), "deep": {"scalars": [torch.tensor(1), torch.tensor(True)]}},
    {},
]


@pytest.mark.parametrize("state", STATES)
def test_nested_containers_come_back_as_they_were(place, state):
    assert equal(round_trip(place, state), state)


def sharing():
    """A state whose tensors share memory in every way that can be kept, some before what they are a part of."""
    table, count, turned = torch.arange(12.0).reshape(3, 4), torch.tensor(5), torch.arange(6.0).reshape(2, 3).t()
    return {
        "a": {"row": table[1], "table": table, "again": table, "turned": table.t(), "one": table[2, 3]},
        "b": [table[:, 1::2], count, (count, turned), turned],
    }


def test_what_shared_memory_shares_it_again(place):
    state = sharing()
    loaded = round_trip(place, state)
    assert equal(loaded, state)
    for one in (state, loaded):
        one["a"]["table"].mul_(2)
        one["b"][1].add_(1)
        one["b"][3].sub_(1)
    assert equal(loaded, state)
    assert loaded["a"]["again"] is loaded["a"]["table"]


def test_what_shares_memory_is_written_once(place):
    shards = Shards(sharing(), {}, 0)
    assert list(shards.tensors) == ["a.table", "b.2.1"]
    assert shards.sizes == {"a": 48, "b": 72}
    written(place, [shards])
    assert equal(load_state(place, "b".__eq__), {"b": sharing()["b"]})


def test_tied_weights_are_one_parameter_before_and_after(place):
    def tied():
        model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    model, fresh = tied(), tied()
    loaded = round_trip(place, {"model": model.state_dict()})
    fresh.load_state_dict(loaded["model"])
    assert equal(dict(fresh.state_dict()), dict(model.state_dict()))
    assert fresh[1].weight is fresh[0].weight


def test_other_mappings_and_numpy_come_back_as_plain_values(place):
    state = {"ordered": OrderedDict(a=1), "number": np.float64(0.5), "count": np.int32(3), "array": np.arange(3)}
    expected = {"ordered": {"a": 1}, "number": 0.5, "count": 3, "array": torch.arange(3)}
    assert equal(round_trip(place, state), expected)


def test_parameters_come_back_as_tensors_that_need_no_gradient(place):
    loaded = round_trip(place, {"w": torch.nn.Parameter(torch.ones(2))})
    assert type(loaded["w"]) is torch.Tensor
    assert not loaded["w"].requires_grad


def test_only_the_entries_that_are_asked_for_are_read(place):
    written(place, [Shards({"model": {"w": torch.ones(2)}, "optimizer": {"m": torch.zeros(2)}, "step": 3}, {}, 0)])
    assert equal(load_state(place, {"model"}.__contains__), {"model": {"w": torch.ones(2)}})
    assert load_state(place, {"step"}.__contains__) == {"step": 3}
    assert list(read_structure(place)) == ["model", "optimizer", "step"]


# ---------------------------------------------------------------- what is refused
class Mode(IntEnum):
    FAST = 1


REFUSED = [
    ({"model": {"deep": [0, {1, 2}]}}, "model.deep.1", "builtins.set"),
    ({"model": print}, "model", "builtins.builtin_function_or_method"),
    ({"model": {"mode": Mode.FAST}}, "model.mode", f"{__name__}.Mode"),
    ({"model": {Mode.FAST: 1}}, "model, key <Mode.FAST: 1>", f"{__name__}.Mode"),
    ({"model": {(1, 2): 1}}, "model, key (1, 2)", "builtins.tuple"),
    ({"model": np.array(["a", "b"])}, "model", "numpy.ndarray of <U1"),
    ({"model": np.array([object()])}, "model", "numpy.ndarray of object"),
    ({"model": np.datetime64("2020-01-01")}, "model", "numpy.datetime64"),
    ({"model": np.longdouble(1)}, "model", "numpy.longdouble"),
]


@pytest.mark.parametrize(("state", "path", "kind"), REFUSED)
def test_what_could_not_be_read_again_is_refused_with_its_path(state, path, kind):
    with pytest.raises(ProgramError) as error:
        Shards(state, {}, 0)
    assert str(error.value) == (
        f"checkpoint: state {path!r}: expected tensors, numbers, texts and containers of them, "
        f"received {kind}; leave it out of state_dict(), or give its parts"
    )


NOT_DENSE = [
    (
        torch.ones(3).to_sparse(),
        "one with the layout torch.sparse_coo; give its to_dense(), or its indices and values",
    ),
    (torch.empty(3, device="meta"), META := "one on the device 'meta', which has no numbers; give it some first, with "
     "to_empty(device=...)"),
    (torch.empty((), device="meta"), META),
]  # fmt: skip


@pytest.mark.parametrize("whose", ["shared", "own"])
@pytest.mark.parametrize(("tensor", "told"), NOT_DENSE)
def test_a_tensor_without_numbers_side_by_side_is_refused_with_its_path(tensor, told, whose):
    given = ({"model": {"w": tensor}}, {}) if whose == "shared" else ({}, {"model": {"w": tensor}})
    with pytest.raises(ProgramError) as error:
        Shards(*given, 0)
    path = {"shared": "model.w", "own": "own.model.w"}[whose]
    assert str(error.value) == (
        f"checkpoint: state {path!r}: expected dense tensors, received {told}, or leave it out of state_dict()"
    )


@pytest.mark.filterwarnings("ignore:.*[Qq]uantiz", "ignore:.*nested tensors")
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "a quantized one (torch.qint8); give "
         "its int_repr() with scale and zero point"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "a nested one; give what it is made of, "
         "with unbind()"),
    ],
)  # fmt: skip
def test_a_tensor_of_another_make_is_refused_with_its_path(make, told):
    with pytest.raises(ProgramError) as error:
        Shards({"model": [make()]}, {}, 0)
    assert str(error.value) == (
        f"checkpoint: state 'model.0': expected dense tensors, received {told}, or leave it out of state_dict()"
    )


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def test_containers_in_containers_come_back_up_to_a_depth_and_are_refused_beyond(place):
    deepest = {"model": nested(DEPTH - 1)}  # the state itself is one
    plan, share = frozen(deepest, {})
    plan.write_index(place, {0: share.write(place).results})
    assert load_state(place) == deepest
    ring = {}
    ring["me"] = ring
    for state, path in ((nested(DEPTH), "model.0.0.0.0.0.0.0…"), (ring, "model.me.me.me.me.me.me.me…")):
        with pytest.raises(ProgramError) as error:
            Shards({"model": state}, {}, 0)
        assert str(error.value) == (
            f"checkpoint: state '{path}': expected containers in at most {DEPTH} others, received more, or one that "
            "holds itself; leave it out of state_dict(), or make it flatter"
        )


def test_what_is_a_ranks_own_is_told_apart_in_a_refusal():
    with pytest.raises(ProgramError, match=r"^checkpoint: state 'own\.engines': "):
        Shards({}, {"engines": object()}, 0)


def test_a_key_that_is_our_mark_is_refused():
    with pytest.raises(ProgramError, match=r"model\.x, key .*__tensor__"):
        Shards({"model": {"x": {"__tensor__": "w"}}}, {}, 0)


def test_a_ranks_file_that_is_not_plain_is_not_read(place):
    for path, read in ((rank_file(0), lambda: read_rank_file(place, 0)), (SHARED, lambda: read_structure(place))):
        with place.create(path) as file:
            torch.save({"structure": Mode.FAST}, file)
        with pytest.raises(Exception, match="Weights only load failed"):
            read()


# ---------------------------------------------------------------- the copy
def frozen(shared, buffers, rank=0):
    shards = Shards(shared, {"rank": rank}, rank)
    plan = GlobalPlan({rank: shards.plan()}) if rank == 0 else None
    return plan, shards.freeze(plan.part(rank), buffers)


def test_what_training_does_after_the_copy_is_not_in_the_checkpoint(place):
    weight, scalar, array = torch.ones(3), torch.tensor(5.0), np.zeros(2)
    nested = {"count": 1}
    plan, share = frozen({"w": weight, "s": scalar, "a": array, "n": nested}, {})
    weight.zero_()
    scalar.zero_()
    array += 7
    nested["count"] = 2
    plan.write_index(place, {0: share.write(place).results})
    assert equal(load_state(place), {
        "w": torch.ones(3), "s": torch.tensor(5.0), "a": torch.zeros(2, dtype=torch.float64), "n": {"count": 1},
    })  # fmt: skip


def test_own_values_are_those_of_the_moment_of_the_copy(place):
    seen = torch.ones(2)
    shards = Shards({"w": torch.ones(1)}, {"seen": seen}, 0)
    plan = GlobalPlan({0: shards.plan()})
    share = shards.freeze(plan.part(0), {})
    seen.zero_()
    share.write(place)
    assert equal(read_rank_file(place, 0), {"seen": torch.ones(2)})


def test_the_copies_of_the_last_time_are_used_again_where_they_fit():
    buffers = {}
    frozen({"same": torch.ones(3), "grows": torch.ones(2), "kind": torch.ones(2), "gone": torch.ones(2)}, buffers)
    before = {name: buffer.data_ptr() for name, buffer in buffers.items()}
    frozen({"same": torch.zeros(3), "grows": torch.ones(4), "kind": torch.ones(2, dtype=torch.int32)}, buffers)
    assert set(buffers) == {"same@(0,)", "grows@(0,)", "kind@(0,)"}
    assert buffers["same@(0,)"].data_ptr() == before["same@(0,)"]
    assert buffers["same@(0,)"].tolist() == [0, 0, 0]
    assert (len(buffers["grows@(0,)"]), buffers["kind@(0,)"].dtype) == (4, torch.int32)


def test_what_was_copied_may_be_written_again_after_a_try_that_failed(place):
    plan, share = frozen({"w": torch.arange(4.0)}, {})
    share.write(place)
    plan.write_index(place, {0: share.write(place).results})
    assert equal(load_state(place), {"w": torch.arange(4.0)})


def test_the_sizes_of_the_entries_are_told():
    shards = Shards({"model": {"w": torch.ones(3), "b": [torch.ones(2, dtype=torch.int64)]}, "step": 1}, {}, 0)
    assert shards.sizes == {"model": 28, "step": 0}


# ---------------------------------------------------------------- the files
def test_what_all_ranks_share_is_written_once_and_what_is_their_own_by_each(storage):
    shared = {"w": torch.arange(4.0)}
    ranks = [Shards(shared, {"rank": rank, "t": torch.ones(2)}, rank) for rank in (0, 1, 2)]
    parts, _ = written(storage, ranks)
    assert [[receipt.path for receipt in parts[rank].receipts] for rank in parts] == [
        ["data/__0_0.distcp", "ranks/rank-0000.pt", "shared.pt"],
        ["ranks/rank-0001.pt"],
        ["ranks/rank-0002.pt"],
    ]
    assert storage.names("data") == [".metadata", "__0_0.distcp"]
    assert [read_rank_file(storage, rank)["rank"] for rank in parts] == [0, 1, 2]
    assert equal(load_state(storage), shared)


def test_receipts_tell_size_and_hash_of_every_file(storage):
    parts, index = written(storage, [Shards({"w": torch.arange(4.0), "big": torch.ones(3 << 20)}, {}, 0)])
    for receipt in [*parts[0].receipts, *index]:
        content = storage.read(receipt.path)
        assert (receipt.size, receipt.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_a_state_without_tensors_has_no_data_file(storage):
    parts, _ = written(storage, [Shards({"step": 7}, {}, 0)])
    assert [receipt.path for receipt in parts[0].receipts] == ["ranks/rank-0000.pt", "shared.pt"]
    assert load_state(storage) == {"step": 7}


# ---------------------------------------------------------------- what a state keeps, and what it can't
def taken_back(tmp_path: Path, state: dict[str, Any]) -> Any:
    """What `load_state` gives of an entry."""
    shards = Shards({"entry": state}, {}, 0)
    plan = GlobalPlan({0: shards.plan()})
    written = shards.freeze(plan.part(0), {}).write(Folder(tmp_path))
    plan.write_index(Folder(tmp_path), {0: written.results})
    return load_state(Folder(tmp_path))["entry"]


def test_the_versions_of_modules_come_back_with_their_state(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).state_dict()
    back = taken_back(tmp_path, state)
    assert back._metadata == state._metadata
    assert back.keys() == state.keys()


@pytest.mark.parametrize("value", [b"", 1 << 5000, -(1 << 5000)])
def test_what_could_be_saved_but_not_read_again_is_refused(value: object) -> None:
    with pytest.raises(ProgramError, match=r"^checkpoint: state 'entry.x': expected tensors"):
        Shards({"entry": {"x": value}}, {}, 0)


def test_a_number_out_of_a_large_tensor_is_saved_alone(tmp_path: Path) -> None:
    big = torch.zeros(1_000_000)
    taken_back(tmp_path, {"a": big[0], "b": big[1]})
    assert Folder(tmp_path).size("shared.pt") < 10_000
