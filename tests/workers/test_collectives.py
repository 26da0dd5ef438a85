"""Collectives: the same call over two ranks and in a world of one."""

import pytest
import torch

from tests.processes import joined, ranks
from workers import collectives

CPU = torch.device("cpu")
OPS = ["sum", "mean", "min", "max", "product"]


@pytest.fixture(scope="module")
def world():
    with ranks(2) as world:
        yield world


def reduce_all(membership, store):
    with joined(membership, store) as device:
        values = [(2, 3)[membership.rank], (0.1, 0.5)[membership.rank], torch.tensor([1, 4][membership.rank])]
        kept = torch.full((2, 2), float(membership.rank)).t()
        found = {op: [collectives.all_reduce(value, op, device=device) for value in values] for op in OPS}
        reduced = collectives.all_reduce(kept, device=device).tolist()
        collectives.barrier()
        return found, reduced, kept.tolist(), values[2].item()


def test_every_rank_gets_the_reduced_value_and_keeps_its_own(world):
    expected = {
        "sum": [5, 0.6, 5],
        "mean": [2.5, 0.3, 2.5],
        "min": [2, 0.1, 1],
        "max": [3, 0.5, 4],
        "product": [6, 0.05, 4],
    }
    for rank, (found, reduced, kept, tensor) in enumerate(world.run(reduce_all)):
        for op, values in expected.items():
            assert found[op][:2] == pytest.approx(values[:2], abs=1e-15)
            assert [type(value) for value in found[op][:2]] == [type(values[0]), float]
            assert torch.equal(found[op][2], torch.tensor(values[2]))
        assert reduced == [[1.0, 1.0], [1.0, 1.0]]
        assert kept == [[rank, rank], [rank, rank]]
        assert tensor == [1, 4][rank]


def share_all(membership, store):
    with joined(membership, store) as device:
        number, tensor = membership.rank + 1, torch.arange(4).view(2, 2).t() * membership.rank
        gathered = collectives.all_gather(number, device=device), collectives.all_gather(tensor, device=device)
        return (
            gathered,
            [collectives.broadcast(number * 0.5, source, device=device) for source in (0, 1)],
            collectives.broadcast(tensor, 1, device=device),
            tensor,
        )


def test_every_rank_gets_the_values_of_all_and_of_one(world):
    whole = torch.tensor([[0, 2], [1, 3]])
    for rank, ((numbers, tensors), sources, broadcast, own) in enumerate(world.run(share_all)):
        assert numbers == [1, 2]
        assert [tensor.tolist() for tensor in tensors] == [[[0, 0], [0, 0]], whole.tolist()]
        assert sources == [0.5, 1.0]
        assert torch.equal(broadcast, whole)
        assert torch.equal(own, whole * rank)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("value", [3, 0.1, 2**60])
def test_alone_a_reduced_number_is_the_number(op, value):
    reduced = collectives.all_reduce(value, op, device=CPU)
    assert reduced == value
    assert type(reduced) is (float if op == "mean" else type(value))


@pytest.mark.parametrize("call", [collectives.all_reduce, collectives.broadcast])
def test_alone_the_result_is_not_the_argument(call):
    value = torch.zeros(2, requires_grad=True)
    result = call(value, device=CPU)
    result += 1
    assert value.tolist() == [0, 0]
    assert not result.requires_grad


def test_alone_a_gathered_value_is_the_only_one():
    value = torch.ones(2)
    (gathered,) = collectives.all_gather(value, device=CPU)
    gathered += 1
    assert value.tolist() == [1, 1]
    assert collectives.all_gather(3, device=CPU) == [3]
    collectives.barrier()


def test_an_operation_that_is_not_known_is_an_error():
    text = r"^all_reduce\(op\): expected one of sum, mean, min, max, product, received 'median'; leave it out"
    with pytest.raises(ValueError, match=text):
        collectives.all_reduce(1, "median", device=CPU)


@pytest.mark.parametrize("call", [collectives.all_reduce, collectives.all_gather, collectives.broadcast])
@pytest.mark.parametrize("value", [True, "text", None])
def test_what_is_no_number_is_an_error_for_one_rank_too(call, value):
    with pytest.raises(TypeError, match=r"^collective: expected a tensor, an int or a float, received "):
        call(value, device=CPU)
