"""The global sequence: each sample once a pass, fair slices, and the same batches for every world size."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.data import sampler
from workers.data.permutation import permute
from workers.data.sampler import GlobalBatches, slice_of

SHAPES = st.tuples(st.integers(1, 60), st.integers(1, 20), st.integers(1, 7))  # N, G, W


def batches_of(samples, batch_size, **options):
    return GlobalBatches(samples=samples, batch_size=batch_size, **({"shuffle": True, "seed": 3} | options))


def indices(batches, step, rank, world_size):
    """The indices of one batch that fall to a rank."""
    return next(batches.walk(range(step, step + 1), rank, world_size))


def passed(batches, world_size, which=0):
    """The indices of one pass, a list per step, the ranks' slices joined."""
    steps = range(which * batches.steps, (which + 1) * batches.steps)
    return [[i for rank in range(world_size) for i in indices(batches, step, rank, world_size)] for step in steps]


@given(st.integers(0, 100), st.integers(1, 12))
def test_slices_lie_side_by_side_and_differ_by_at_most_one(total, world_size):
    slices = [slice_of(total, rank, world_size) for rank in range(world_size)]
    assert [start for start, _ in slices] == [0, *(stop for _, stop in slices[:-1])]
    assert slices[-1][1] == total
    sizes = [stop - start for start, stop in slices]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


@given(SHAPES, st.booleans(), st.integers(0, 3))
def test_every_sample_comes_exactly_once_a_pass(shape, shuffle, which):
    samples, batch_size, world_size = shape
    batches = batches_of(samples, batch_size, shuffle=shuffle)
    seen = list(chain.from_iterable(passed(batches, world_size, which)))
    assert sorted(seen) == list(range(samples))
    assert shuffle or seen == list(range(samples))


@given(SHAPES, st.integers(1, 7), st.integers(0, 3))
def test_the_batches_do_not_depend_on_the_world_size(shape, other_world, which):
    samples, batch_size, world_size = shape
    batches = batches_of(samples, batch_size)
    assert passed(batches, world_size, which) == passed(batches, other_world, which)


@given(SHAPES, st.booleans(), st.integers(0, 99))
def test_sizes_and_totals_tell_what_the_indices_are(shape, drop_last, step):
    samples, batch_size, world_size = shape
    batches = batches_of(max(samples, batch_size), batch_size, drop_last=drop_last)
    sizes = [len(indices(batches, step, rank, world_size)) for rank in range(world_size)]
    assert sizes == [batches.size(step, rank, world_size) for rank in range(world_size)]
    assert sum(sizes) == batches.total(step) <= batch_size


@given(st.integers(1, 60), st.integers(1, 20))
def test_drop_last_leaves_out_only_the_smaller_batch(samples, batch_size):
    dropping = batches_of(samples, batch_size, drop_last=True)
    keeping = batches_of(samples, batch_size)
    assert dropping.steps == samples // batch_size
    assert keeping.steps == -(-samples // batch_size)
    assert [dropping.total(step) for step in range(dropping.steps)] == [batch_size] * dropping.steps


@given(SHAPES, st.integers(0, 3))
def test_dropping_the_last_leaves_the_first_positions_of_the_permutation(shape, which):
    samples, batch_size, world_size = shape
    batches = batches_of(max(samples, batch_size), batch_size, drop_last=True)
    order = permute(range(batches.samples), batches.samples, (3 << 32) + which).tolist()
    assert list(chain.from_iterable(passed(batches, world_size, which))) == order[: batches.steps * batch_size]


@given(SHAPES, st.booleans(), st.integers(0, 40))
def test_the_position_counts_the_samples_of_all_batches_before(shape, drop_last, step):
    samples, batch_size, _ = shape
    batches = batches_of(max(samples, batch_size), batch_size, drop_last=drop_last)
    assert batches.position(step) == sum(batches.total(before) for before in range(step))


def test_each_pass_and_each_seed_has_an_order_of_its_own():
    orders = [passed(batches_of(30, 7, seed=seed), 1, which) for seed in (0, 1) for which in (0, 1)]
    assert all(orders.count(order) == 1 for order in orders)


def test_without_shuffling_all_passes_are_equal():
    batches = batches_of(10, 4, shuffle=False)
    assert passed(batches, 2, 0) == passed(batches, 3, 5) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("step", [0, 2, 5])
def test_a_stand_in_is_one_real_sample_of_the_same_batch(step):
    batches = batches_of(9, 4)
    assert batches.stand_in(step) == indices(batches, step, 0, 1)[:1]


@given(SHAPES, st.integers(1, 9), st.integers(0, 3))
def test_a_walk_gives_the_same_batches_however_many_are_permuted_at_once(shape, block, which):
    samples, batch_size, world_size = shape
    batches = batches_of(samples, batch_size)
    steps = range(which * batches.steps + batches.steps // 3, (which + 1) * batches.steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "BLOCK", block)
        walked = [list(batches.walk(steps, rank, world_size)) for rank in range(world_size)]
    assert walked == [[indices(batches, step, rank, world_size) for step in steps] for rank in range(world_size)]
