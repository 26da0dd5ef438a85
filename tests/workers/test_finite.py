"""Which numbers in a nest are not finite."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from workers.finite import has_nonfinite, name_nonfinite, numbers_in

LARGE = torch.arange(1000.0)


def found(value: object) -> bool:
    return bool(has_nonfinite(leaf for _, leaf in numbers_in(value)))


def with_nan(tensor: torch.Tensor, place: int = 5, value: float = math.nan) -> torch.Tensor:
    spoilt = tensor.clone()
    spoilt.reshape(-1)[place] = value
    return spoilt


@pytest.mark.parametrize(
    "value",
    [
        1.0, 10**400, True, Fraction(1, 3), 1j, "nan", None, {}, [], torch.tensor([]), torch.tensor(3), LARGE,
        torch.tensor(True), np.float32(1.0), np.arange(3), np.array(["nan"]), {"loss": LARGE, "n": [1, None]},
        torch.tensor(3.0e38), torch.tensor([1e300], dtype=torch.float64), torch.full((100,), 65504.0).half(),
    ],
)  # fmt: skip
def test_what_is_finite_or_no_number_is_passed(value: object) -> None:
    assert not found(value)


@pytest.mark.parametrize(
    "value",
    [
        math.nan, -math.inf, complex(0, math.inf), np.float32("nan"), np.array([1.0, math.nan]),
        np.array([[1j, math.inf]]),
        torch.tensor(math.nan), torch.tensor([1.0, -math.inf]), with_nan(LARGE), with_nan(LARGE, 999, math.inf),
        with_nan(LARGE).reshape(10, 100).t(), torch.tensor([complex(math.nan, 0)]),
        [1.0, (2.0, {"deep": [torch.ones(2), torch.tensor(math.inf)]})],
        torch.sparse_coo_tensor([[0, 2]], [1.0, math.nan], (4,), check_invariants=True),
    ],
)  # fmt: skip
def test_nan_and_infinity_are_found_wherever_they_are(value: object) -> None:
    assert found(value)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.float8_e5m2])
@pytest.mark.parametrize("size", [1, 32, 33, 5000])
def test_every_type_is_looked_at_however_large(kind: torch.dtype, size: int) -> None:
    clean = torch.ones(size)
    assert not found(clean.to(kind))
    assert found(with_nan(clean, size - 1).to(kind))


def test_tensors_of_several_types_are_one_answer() -> None:
    assert found([torch.ones(100).half(), with_nan(LARGE), torch.ones(50, dtype=torch.float64)])
    assert not found([torch.ones(100).half(), LARGE, torch.ones(50, dtype=torch.float64)])


def test_a_nest_that_contains_itself_is_looked_at_once() -> None:
    nest: dict[str, Any] = {"loss": math.nan}
    nest["again"] = [nest, nest]
    assert [path for path, _ in numbers_in(nest)] == ["loss"]


def test_what_is_shared_is_looked_at_under_its_first_name() -> None:
    shared = {"loss": 1.0}
    assert [path for path, _ in numbers_in([shared, shared])] == ["0/loss"]


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ([("loss", 1.0)], ""),
        ([("loss", math.inf)], "loss is inf"),
        ([("loss", torch.tensor([[-math.inf]]))], "loss is -inf"),
        ([("w", with_nan(LARGE)), ("c", math.nan)], "w has 1 of 1000 values that are nan or infinite, and 1 more"),
    ],
)  # fmt: skip
def test_the_first_is_told_in_full(named: list[tuple[str, Any]], text: str) -> None:
    assert name_nonfinite(named) == text
