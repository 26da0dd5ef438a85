"""Batches in pieces: as equal as can be, always as many, and joined again."""

from collections import namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.errors import ProgramError
from workers.microbatches import joined, samples_in, split, to_device

Pair = namedtuple("Pair", "x y")


@given(samples=st.integers(1, 12), pieces=st.integers(2, 9))
def test_pieces_are_the_batch_and_always_as_many(samples, pieces):
    found = split(torch.arange(samples), pieces)
    counts = [count for _, count in found]
    kept = torch.cat([piece for piece, count in found if count])
    assert len(found) == pieces
    assert kept.tolist() == list(range(samples))
    assert max(counts) - min(counts) <= 1
    assert all(len(piece) == max(count, 1) for piece, count in found)


def test_containers_come_back_as_they_were():
    batch = Pair({"ids": torch.arange(4), "scale": torch.tensor(2.0)}, [["a", "b", "c", "d"], 7])
    (first, _), (second, _) = split(batch, 2)
    assert isinstance(first, Pair)
    assert (first.x["ids"].tolist(), second.x["ids"].tolist()) == ([0, 1], [2, 3])
    assert first.x["scale"] == 2.0
    assert (first.y, second.y) == ([["a", "b"], 7], [["c", "d"], 7])


def test_tensors_of_several_lengths_are_refused():
    with pytest.raises(ProgramError) as error:
        samples_in((torch.zeros(3), torch.zeros(2)))
    assert str(error.value).startswith(
        "accumulate: expected tensors with one sample in each row, received lengths [2, 3] in one batch; give"
    )


def test_predictions_are_joined():
    pieces = [{"logits": torch.ones(2, 3), "more": (torch.zeros(2), torch.tensor(1.0))}] * 2
    whole = joined(pieces)
    assert whole["logits"].shape == (4, 3)
    assert [part.tolist() for part in whole["more"]] == [[0, 0, 0, 0], [1, 1]]


def test_a_batch_is_moved_with_its_containers():
    moved = to_device(Pair({"x": torch.zeros(2)}, ["text"]), torch.device("meta"))
    assert moved.x["x"].device.type == "meta"
    assert moved.y == ["text"]
