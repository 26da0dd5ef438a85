"""Random numbers: equal while ranks build, apart afterwards, and exactly where they were after a restore."""

import pickle
import random

import numpy as np
import pytest
import torch

from workers.rng import capture_rng, restore_rng, seed_rng

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def generators_stay():
    state = capture_rng(CPU)
    yield
    restore_rng(state, CPU)


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()


def test_a_restored_state_draws_the_same_numbers():
    seed_rng(3)
    draw()  # leaves half a pair of normal numbers behind
    state = capture_rng(CPU)
    first = draw(), draw()
    restore_rng(state, CPU)
    assert (draw(), draw()) == first


def test_a_state_holds_only_what_is_read_without_trust(tmp_path):
    seed_rng(3)
    torch.save(capture_rng(CPU), tmp_path / "rng.pt")
    first = draw()
    restore_rng(torch.load(tmp_path / "rng.pt", weights_only=True), CPU)
    assert draw() == first


def test_a_state_is_no_window_on_the_generators():
    state = capture_rng(CPU)
    before = pickle.dumps(state)
    draw()
    assert pickle.dumps(state) == before


def drawn(seed, rank=None):
    seed_rng(seed, rank)
    return draw()


def test_all_ranks_build_with_the_same_numbers():
    assert drawn(5) == drawn(5)


def test_ranks_seeds_and_the_build_have_numbers_of_their_own():
    streams = [drawn(7, None), *(drawn(seed, rank) for seed in (5, 6, 7) for rank in (0, 1, 2))]
    for generator in zip(*streams, strict=True):
        assert len(set(generator)) == len(streams)


def test_seeds_may_be_huge_or_negative():
    assert len({drawn(seed, 0) for seed in (-3, 2**63, 2**100)}) == 3
