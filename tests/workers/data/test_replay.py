"""An iterator that can go back: what it keeps, how far it goes back, and that a step notices nothing of it."""

import random

import numpy as np
import pytest
import torch

from workers.data.replay import Replayable
from workers.errors import DataLoaderEmptyError, FastForwardWarning
from workers.rng import capture_rng, restore_rng

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def generators_stay():
    state = capture_rng(CPU)
    yield
    restore_rng(state, CPU)


def replayable(count=9):
    return Replayable(torch.full((2,), float(number)) for number in range(1, count + 1))


def numbers(batches, count):
    return [int(batches.next()[0]) for _ in range(count)]


def test_what_was_kept_is_handed_out_again():
    batches = replayable()
    assert numbers(batches, 2) == [1, 2]
    batches.keep(2)
    assert numbers(batches, 4) == [3, 4, 5, 6]
    for _ in range(2):
        batches.go_to(3)
        assert batches.read == 3
        assert numbers(batches, 2) == [4, 5]
        batches.go_to(2)
        assert numbers(batches, 5) == [3, 4, 5, 6, 7]


def test_only_what_may_be_needed_is_kept():
    batches = replayable()
    batches.keep(0)
    numbers(batches, 6)
    batches.go_to(3)
    batches.keep(2)
    assert len(batches._kept) == 4
    assert numbers(batches, 1) == [4]
    batches.keep(4)
    assert len(batches._kept) == 2
    assert numbers(batches, 4) == [5, 6, 7, 8]
    batches.keep(8)
    assert len(batches._kept) == 0


def test_a_batch_comes_again_as_it_was_though_the_step_worked_on_it():
    batches = replayable()
    batches.keep(0)
    for _ in range(3):
        batches.next().zero_()
        batches.go_to(0)
    assert numbers(batches, 1) == [1]


def test_nothing_is_kept_before_somebody_asks():
    batches = replayable()
    numbers(batches, 3)
    with pytest.raises(AssertionError, match="to go back 1 batches, as many must be kept, not 0"):
        batches.go_to(2)


def test_an_iterator_that_is_behind_is_read_up_to_its_place():
    batches = Replayable(iter([1, 2, 3, 4]))
    with pytest.warns(FastForwardWarning, match="2 batches were read and thrown away"):
        batches.load_state_dict({"read": 2})
    batches.go_to(2)
    assert batches.read == 2
    assert batches.next() == 3
    with pytest.raises(DataLoaderEmptyError, match=r"expected 7 batches or more, .* received 4 from list_iterator"):
        batches.go_to(7)


def test_generators_stand_where_they_stood_after_the_batch_was_made():
    batches = Replayable(torch.rand(()) + random.random() + np.random.rand() for _ in range(9))
    rng = capture_rng(CPU)
    batches.keep(0)
    drawn = [(batches.next().item(), torch.rand(()).item()) for _ in range(3)]
    batches.go_to(0)
    restore_rng(rng, CPU)
    assert [(batches.next().item(), torch.rand(()).item()) for _ in range(3)] == drawn
    assert batches.next() != drawn[0][0]


def test_generators_are_left_alone_if_making_the_batch_drew_nothing():
    batches = replayable()
    batches.keep(0)
    batches.next()
    batches.go_to(0)
    rng = capture_rng(CPU)
    torch.rand(1)
    first = torch.rand(1)
    restore_rng(rng, CPU)
    torch.rand(1)
    batches.next()
    assert torch.equal(torch.rand(1), first)
