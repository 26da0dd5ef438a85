"""Copies of nested state: any tensor comes back as it was, memory is used again, and what was one stays one."""

from collections import OrderedDict

import numpy as np
import pytest
import torch

from tests.workers.training import equal
from workers.copies import Copies, bytes_in, packed, unpacked

TENSORS = [
    torch.tensor(1.5),
    torch.arange(6).reshape(2, 3),
    torch.arange(6.0).reshape(2, 3).t(),
    torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    torch.arange(10)[::3],
    torch.ones(1).expand(4),
    torch.empty(0, 3),
    torch.tensor([True, False]),
    torch.tensor([1 + 2j, 3j]),
    torch.tensor([1 + 2j, 3j]).conj(),
    torch.rand(3).bfloat16(),
    torch.rand(3).half(),
    torch.rand(4).to(torch.float8_e4m3fn),
    torch.tensor([float("nan"), float("inf"), -0.0]),
    torch.nn.Parameter(torch.ones(2)),
]


def same(one, other):
    """Bit by bit, so that NaN equals itself."""
    bits = [t.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)


@pytest.mark.parametrize("tensor", TENSORS, ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)}")
def test_a_tensor_comes_back_bit_by_bit(tensor):
    copies = Copies()
    copies.take({"it": [tensor]})
    assert same(copies.views("it")[0], tensor)
    assert same(copies.clones("it")[0], tensor)
    assert same(unpacked(packed(tensor)), tensor)


def sharing():
    table, turned = torch.arange(12.0).reshape(3, 4), torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    expanded = torch.ones(1)
    return [
        {"row": table[1], "table": table, "turned": table.t(), "odd": table[:, 1::2], "bits": table.view(torch.int32)},
        [turned, turned[1], turned[:, :, 2], expanded.expand(4), expanded, torch.zeros(0)],
    ]


def change(state):
    first, second = state
    first["row"].mul_(3)
    first["turned"][0].add_(1)
    second[0].neg_()
    second[4].add_(2)


def test_what_shared_memory_shares_it_again():
    state, copies = sharing(), Copies()
    copies.take({"state": state})
    assert equal(copies.views("state"), state)
    kept = copies.clones("state")
    assert equal(kept, state)
    for one in (state, kept):
        change(one)
    assert equal(kept, state)
    copies.take({"state": state})  # into the same memory
    assert equal(copies.clones("state"), state)
    assert equal(copies.clones("state"), kept)


def test_a_view_takes_no_memory_beside_what_it_is_a_part_of():
    copies, table = Copies(), torch.rand(64, 64)
    copies.take({"state": [table[3], table, table.t()]})
    assert copies.size == table.numel() * 4


def test_a_view_of_another_states_tensor_is_kept_by_itself():
    copies, table = Copies(), torch.rand(64, 64)
    copies.take({"whole": table, "part": table[3]})
    part = copies.clones("part")
    assert equal(part, table[3])
    assert part.untyped_storage().nbytes() == 64 * 4


def test_a_clone_keeps_the_order_of_its_dimensions():
    copies = Copies()
    copies.take({"it": TENSORS[3]})
    assert copies.clones("it").stride() == TENSORS[3].stride()


def test_containers_keep_their_kinds_and_numbers_their_types():
    state = OrderedDict(a=[1, (2.5, None)], b={3: np.arange(3), "c": np.float32(1.5)}, d=lambda x: x + 1)
    state._metadata = {"version": 2}
    copies = Copies()
    copies.take({"state": state})
    back = copies.clones("state")
    assert type(back) is OrderedDict
    assert back._metadata == {"version": 2}
    assert back["a"] == [1, (2.5, None)]
    assert back["b"][3].tolist() == [0, 1, 2]
    assert type(back["b"]["c"]) is np.float32
    assert back["d"](1) == 2


def test_layouts_that_have_no_place_in_memory_are_copied_too():
    sparse = torch.eye(3).to_sparse()
    copies = Copies()
    copies.take({"sparse": {"it": sparse}})
    sparse.values().zero_()
    assert torch.equal(copies.clones("sparse")["it"].to_dense(), torch.eye(3))


def test_one_memory_is_copied_once_and_comes_back_as_one():
    weight = torch.zeros(1000)
    copies = Copies()
    copies.take({"one": [weight, weight.view(1000), weight[:10]], "two": weight.detach()})
    assert copies.size == 4000
    one, two = copies.clones("one"), copies.clones("two")
    assert one[0] is one[1]
    assert one[2] is not one[0]
    assert two is not one[0]
    assert copies.views("one")[0] is copies.views("two")


def test_memory_is_used_again_also_by_what_is_a_little_smaller():
    copies = Copies()
    addresses = []
    for size in (1000, 1000, 900, 1000):
        copies.take({"it": torch.full((size,), float(size))})
        addresses.append(copies.memory.data_ptr())
        assert copies.clones("it").tolist() == [size] * size
    assert len(set(addresses)) == 1
    copies.take({"it": torch.zeros(10)})
    assert copies.memory.numel() == 40


def test_a_clone_is_not_changed_by_the_next_copy():
    copies = Copies()
    copies.take({"it": torch.ones(3)})
    clone, view = copies.clones("it"), copies.views("it")
    fresh = copies.fresh(view)
    copies.take({"it": torch.zeros(3)})
    assert clone.tolist() == fresh.tolist() == [1, 1, 1]
    assert view.tolist() == [0, 0, 0]
    assert copies.fresh(clone) is clone


def test_what_is_packed_brings_no_more_than_itself():
    table = torch.zeros(100_000)
    assert len(packed({"row": table[:10]})) < 500


def test_bytes_are_those_of_tensors_and_arrays():
    assert bytes_in({"a": [torch.zeros(3), (np.zeros(2), 5)], "b": "text"}) == 12 + 16


def test_packed_things_are_new_every_time():
    content = packed({"names": ["a"], "value": torch.ones(1)})
    first, second = unpacked(content), unpacked(content)
    first["names"].append("b")
    first["value"].zero_()
    assert equal(second, {"names": ["a"], "value": torch.ones(1)})
