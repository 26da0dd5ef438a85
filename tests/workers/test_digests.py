"""A digest is another one if any bit is."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.digests import digest_of

CPU = torch.device("cpu")
KINDS = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool,
    torch.complex64, torch.complex128,
)  # fmt: skip


def digest(*tensors: torch.Tensor) -> int:
    return int(digest_of(tensors, CPU))


def flipped(tensor: torch.Tensor, bits: Sequence[int]) -> torch.Tensor:
    octets = tensor.clone().view(torch.uint8)
    for bit in bits:
        octets[bit // 8] ^= 1 << bit % 8
    return octets.view(tensor.dtype)


@given(st.sampled_from([1, 7, 300, 600, 3001, 40_000]), st.data())
def test_one_flipped_bit_anywhere_is_seen(size: int, data: st.DataObject) -> None:
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(size))
    bit = data.draw(st.integers(0, size * 32 - 1))
    assert digest(flipped(tensor, [bit])) != digest(tensor)


@given(st.sets(st.integers(0, 3000 * 32 - 1), min_size=2, max_size=3))
def test_two_or_three_flipped_bits_do_not_cancel_out(bits: set[int]) -> None:
    tensor = torch.randn(3000, generator=torch.Generator().manual_seed(1))
    assert digest(flipped(tensor, sorted(bits))) != digest(tensor)


@pytest.mark.parametrize("size", [100, 5000])
def test_order_sign_and_shift_matter(size: int) -> None:
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(1))
    others = [
        -tensor,
        tensor.flip(0),
        tensor.roll(1),
        tensor.roll(64),
        torch.cat([tensor[1:2], tensor[:1], tensor[2:]]),
    ]
    assert len({digest(tensor), *map(digest, others)}) == 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (7, 5), (70, 51)])
def test_every_type_and_shape_has_a_digest_that_stays_the_same(kind: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(kind)
    assert digest(tensor) == digest(tensor.clone())
    assert digest(tensor, torch.ones(1)) != digest(tensor, torch.zeros(1))


def test_it_does_not_depend_on_where_in_memory_a_tensor_lies() -> None:
    whole = torch.arange(4001, dtype=torch.bfloat16)
    assert digest(whole[1:]) == digest(whole[1:].clone())
    square = torch.randn(64, 64)
    assert digest(square.t()) == digest(square.t().contiguous())
    image = torch.randn(8, 8, 4, 4)
    assert digest(image.to(memory_format=torch.channels_last)) == digest(image)
    assert digest(torch.eye(3).to_sparse()) == digest(torch.eye(3))


def test_the_order_of_tensors_matters_and_none_is_a_digest_too() -> None:
    first, second = torch.ones(5), torch.zeros(5)
    assert digest(first, second) != digest(second, first)
    assert digest() == 0
