"""Which gates lie between two iterations."""

import pytest

from workers.boundary import at_boundary
from workers.parcels import GateKey


@pytest.mark.parametrize(
    ("key", "whole"),
    [
        (GateKey(engine="trainer", event="EPOCH_COMPLETED", count=1), True),
        (GateKey(engine="trainer", event="ITERATION_COMPLETED", count=1), True),
        (GateKey(engine="trainer", event="CUT", count=1), True),
        (GateKey(engine="trainer", event="GET_BATCH_STARTED", count=1), False),
        (GateKey(engine="trainer", event="GET_BATCH_COMPLETED", count=1), False),
        (GateKey(engine="trainer", event="ITERATION_STARTED", count=1), False),
        (GateKey(engine="trainer", event="BACKWARD_STARTED", count=1), False),
        (GateKey(engine="evaluator", event="EPOCH_COMPLETED", count=1, visit=3), False),
    ],
)
def test_a_boundary_lies_between_two_iterations_of_the_trainer(key: GateKey, whole: bool) -> None:
    assert at_boundary(key) is whole
