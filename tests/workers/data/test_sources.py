"""Batches that a rank brings itself: how many samples are in one, and the part that a spare does not have."""

import numpy as np
import pytest
import torch

from workers.data.sources import HandedOut, NoPart, TorchBatches, size_of
from workers.errors import ProgramError


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.zeros(5, 3), 5),
        (torch.zeros(0, 3), 1),
        (np.zeros((4, 2)), 4),
        ((torch.zeros(3), torch.zeros(7)), 3),
        ({"id": ["a", "b"], "x": np.zeros(6)}, 6),
        ([{"x": (torch.zeros(()), torch.zeros(2))}], 2),
        (torch.zeros(()), 1),
        ("text", 1),
        (None, 1),
        ([], 1),
    ],
)
def test_the_size_of_a_batch_is_the_length_of_its_first_array(batch, size):
    assert size_of(batch) == size


def test_a_batch_that_is_skipped_is_not_counted():
    told = []
    batches = HandedOut(iter([torch.zeros(2), torch.zeros(3)]), lambda *sizes: told.append(sizes))
    batches.skip()
    assert len(next(batches)) == 3
    assert told == [(3, 0)]
    with pytest.raises(StopIteration):
        batches.skip()


def test_a_spare_can_build_with_the_part_that_it_does_not_have():
    part = NoPart("train")
    assert isinstance(part, TorchBatches)
    with pytest.raises(ProgramError, match=r"^dataset 'train': expected a rank that trains, received a spare, "):
        part.iter_torch_batches(batch_size=1, drop_last=False)
