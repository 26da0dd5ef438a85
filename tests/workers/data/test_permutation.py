"""The keyed permutation: a bijection for every n and key, and the same one for ever."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workers.data.permutation import permute

KEYS = st.integers(-(2**70), 2**70)


@given(st.integers(1, 3000), KEYS)
@example(1, 0)
@example(2, 0)
@example(4, 1)
@example(1024, 2)
@example(1025, 3)
def test_every_position_gets_a_sample_of_its_own(n, key):
    assert np.array_equal(np.sort(permute(range(n), n, key)), np.arange(n))


@given(st.integers(1, 2**62), KEYS, st.data())
def test_positions_of_huge_data_stay_inside_it_and_apart(n, key, data):
    positions = data.draw(st.lists(st.integers(0, n - 1), max_size=20, unique=True))
    indices = permute(positions, n, key).tolist()
    assert len(set(indices)) == len(positions)
    assert all(0 <= index < n for index in indices)


@given(st.integers(1, 500), KEYS, st.data())
def test_a_position_asked_alone_gets_the_same_answer(n, key, data):
    position = data.draw(st.integers(0, n - 1))
    assert permute(position, n, key) == permute(range(n), n, key)[position]


def test_consecutive_keys_give_different_orders():
    orders = {tuple(permute(range(20), 20, key).tolist()) for key in range(500)}
    assert len(orders) == 500


def test_every_sample_reaches_every_place_about_equally_often():
    firsts = np.bincount([int(permute(0, 8, key)) for key in range(4000)], minlength=8)
    assert firsts.min() > 400  # 500 expected; 5 standard deviations are 105
    assert firsts.max() < 605


def test_the_order_is_a_promise_over_versions():
    assert permute(range(10), 10, key=0).tolist() == [9, 0, 3, 5, 1, 6, 4, 7, 2, 8]
    assert permute(range(3), 10**12, key=(7 << 32) + 1).tolist() == [755934394636, 260011324859, 531398340235]


def test_the_shape_of_the_positions_is_kept():
    assert permute(np.arange(6).reshape(2, 3), 6, key=1).shape == (2, 3)
    assert permute([], 6, key=1).tolist() == []


def test_nothing_to_permute_is_an_error():
    with pytest.raises(ValueError, match=r"^permute: n: expected at least 1, received 0$"):
        permute([], 0, key=1)


@pytest.mark.parametrize(("positions", "received"), [([0, 5], "0 … 5"), ([-1, 2], "-1 … 2")])
def test_positions_outside_are_an_error(positions, received):
    with pytest.raises(ValueError, match=f"^permute: positions: expected 0 … 4, received {received}; take them modul"):
        permute(positions, 5, key=1)
