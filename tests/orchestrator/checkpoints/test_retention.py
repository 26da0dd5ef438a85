"""Which checkpoints may go: never the newest, never the best."""

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checkpoints.retention import best_of, to_prune

VALUES = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))
SAVED = st.lists(VALUES, min_size=1, max_size=12)


def named(values: list[float | None]) -> list[tuple[int, dict[str, float]]]:
    return [(number, {} if value is None else {"acc": value}) for number, value in enumerate(values)]


def test_the_newest_and_the_best_stay() -> None:
    assert to_prune(["a", "b", "c", "d"], keep=2, best="a") == ["b"]
    assert to_prune(["a", "b", "c", "d"], keep=1, best=None) == ["a", "b", "c"]
    assert to_prune(["a", "b"], keep=5, best=None) == []


def test_of_equals_the_earlier_one_is_the_best() -> None:
    assert best_of(named([1.0, 3.0, 3.0]), "acc", "max") == 1
    assert best_of(named([2.0, 1.0, 1.0]), "acc", "min") == 1


def test_nobody_is_the_best_without_a_number() -> None:
    assert best_of(named([float("nan"), None]), "acc", "max") is None
    assert best_of([], "acc", "max") is None
    assert best_of(named([1.0]), "loss", "max") is None


@given(values=SAVED, keep=st.integers(1, 5), mode=st.sampled_from(["max", "min"]))
def test_the_newest_ones_and_the_best_are_never_pruned(
    values: list[float | None], keep: int, mode: Literal["max", "min"]
) -> None:
    names = list(range(len(values)))
    best = best_of(named(values), "acc", mode)
    gone = to_prune(names, keep=keep, best=best)
    assert not set(gone) & set(names[-keep:])
    assert best not in gone
    assert len(names) - len(gone) <= keep + (best is not None)


@given(values=SAVED)
def test_pruning_after_every_save_keeps_the_best_of_all_that_were(values: list[float | None]) -> None:
    kept: list[tuple[int, dict[str, float]]] = []
    for saved in named(values):
        kept.append(saved)
        best = best_of(kept, "acc", "max")
        gone = to_prune([name for name, _ in kept], keep=1, best=best)
        kept = [one for one in kept if one[0] not in gone]
    assert best_of(kept, "acc", "max") == best_of(named(values), "acc", "max")
    assert kept[-1][0] == len(values) - 1


def test_to_keep_none_is_no_choice() -> None:
    with pytest.raises(AssertionError, match="the newest checkpoint is never pruned"):
        to_prune(["a"], keep=0, best=None)
