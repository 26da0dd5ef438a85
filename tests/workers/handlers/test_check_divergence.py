"""Who is odd, by digests alone; how ranks come to them is in the journey `test_guards.py`."""

from typing import Any

import pytest
from torch import nn

from workers import Engine, Events, Worker
from workers.handlers.check_divergence import CheckDivergence, Divergence, compare

SAME = [("w", 1), ("b", 2), ("c", 3)]
ODD = [("w", 1), ("b", 5), ("c", 6)]
OTHER = [("w", 7), ("b", 2), ("c", 3)]


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_equal_ranks_do_not_diverge(world_size: int) -> None:
    assert compare([list(SAME)] * world_size) is None


@pytest.mark.parametrize(
    ("digests", "odd", "first", "differing"),
    [
        ([SAME, SAME, ODD], (2,), "b", 2),
        ([OTHER, SAME, SAME, SAME, ODD], (0, 4), "w", 3),
        ([SAME, ODD], (0, 1), "b", 2),  # one of the two, and nobody knows which
        ([SAME, SAME, ODD, ODD], (0, 1, 2, 3), "b", 2),
        ([SAME, ODD, OTHER], (0, 1, 2), "w", 3),
        ([SAME, SAME, SAME[:2]], (2,), "c", 1),
    ],
)
def test_the_odd_ones_are_those_that_differ_from_more_than_half(
    digests: list[Any], odd: tuple[int, ...], first: str, differing: int
) -> None:
    assert compare(digests) == Divergence(odd=odd, first=first, differing=differing, tensors=3)


def test_a_rank_that_trains_alone_has_nobody_to_differ_from() -> None:
    worker, trainer = Worker(), Engine(lambda engine, batch: None)
    worker.prepare(nn.Linear(2, 1))
    trainer.worker = worker
    trainer.add_event_handler(Events.ITERATION_COMPLETED, CheckDivergence(every=1))
    assert trainer.run(range(3)).iteration == 3


def test_an_interval_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"CheckDivergence\(every\): expected a whole number of iterations"):
        CheckDivergence(every=0)
