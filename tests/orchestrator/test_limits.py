"""How long to train: which numbers are accepted, and the texts of the others."""

from typing import Any

import pytest

from orchestrator.errors import SpecError
from orchestrator.limits import Limits


def test_a_run_is_counted_in_epochs_or_in_iterations() -> None:
    assert Limits(max_epochs=3).max_iters is None
    assert Limits(max_iters=10, epoch_length=5).max_epochs is None


@pytest.mark.parametrize(("epochs", "iters"), [(None, None), (3, 5)])
def test_exactly_one_of_the_two_is_given(epochs: int | None, iters: int | None) -> None:
    with pytest.raises(SpecError) as caught:
        Limits(max_epochs=epochs, max_iters=iters)
    assert str(caught.value) == (
        f"orchestrator.run: expected exactly one of max_epochs and max_iters, received {epochs} and {iters}; "
        "write for example run(max_epochs=5)"
    )


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True])
@pytest.mark.parametrize("name", ["max_epochs", "max_iters", "epoch_length"])
def test_numbers_are_positive_and_whole(name: str, value: Any) -> None:
    given = {name: value} if name != "epoch_length" else {"max_epochs": 1, name: value}
    with pytest.raises(SpecError) as caught:
        Limits(**given)
    assert str(caught.value) == (
        f"orchestrator.run({name}): expected a positive whole number, received {value!r} ({type(value).__name__}); "
        f"write for example {name}=5"
    )
