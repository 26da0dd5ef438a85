"""The loader: a cursor over the global sequence, exact shares for evaluation, torch's own loader underneath."""

import os
from itertools import chain

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import get_worker_info

from tests.waiting import wait_until
from workers.data.loader import GlobalLoader
from workers.data.sampler import GlobalBatches


def loader_of(samples=10, batch_size=4, rank=0, world_size=1, shuffle=True, dataset=None, **options):
    batches = GlobalBatches(samples=samples, batch_size=batch_size, shuffle=shuffle, seed=1)
    return GlobalLoader(dataset or range(samples), batches, lambda: (rank, world_size), **options)


def indices(batches, step, rank, world_size):
    """The indices of one batch that fall to a rank."""
    return next(batches.walk(range(step, step + 1), rank, world_size))


def lists(batches):
    return [batch.tolist() for batch in batches]


class Squares:
    """Samples that also tell which process fetched them."""

    def __len__(self):
        return 9

    def __getitem__(self, index):
        return torch.tensor([index * index, os.getpid(), -1 if get_worker_info() is None else 1])


def test_a_loader_gives_one_pass_and_then_the_next():
    loader = loader_of()
    first, second = lists(loader), lists(loader)
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(10))
    assert first != second
    assert len(loader) == 3
    assert loader.step == 6


@given(st.integers(0, 11), st.sampled_from([(1, 0), (2, 1), (3, 2)]))
def test_after_a_seek_the_sequence_goes_on_as_if_undisturbed(step, place):
    world_size, rank = place
    whole = loader_of(rank=rank, world_size=world_size)
    undisturbed = [batch for _ in range(4) for batch in lists(whole)]
    loader = loader_of(rank=rank, world_size=world_size)
    loader.seek(step)
    rest = []
    while loader.step < 12:
        rest += lists(loader)
    assert rest == undisturbed[step:]


def test_an_iteration_that_was_left_goes_on_at_the_next_batch():
    loader, whole = loader_of(), lists(loader_of())
    iterator = iter(loader)
    assert next(iterator).tolist() == whole[0]
    assert lists(loader) == whole[1:]


@given(st.integers(1, 30), st.integers(1, 9), st.data())
def test_all_ranks_together_give_every_sample_once(samples, batch_size, data):
    world_size = data.draw(st.integers(1, batch_size))
    seen = []
    for rank in range(world_size):
        loader = loader_of(samples, batch_size, rank, world_size)
        sizes = [loader.batches.size(step, rank, world_size) for step in range(len(loader))]
        seen += [i for batch, size in zip(lists(loader), sizes, strict=True) if size for i in batch]
    assert sorted(seen) == list(range(samples))


def test_a_rank_without_samples_gets_one_stand_in_and_is_told_so():
    told = []
    loader = loader_of(5, 4, rank=1, world_size=2, shuffle=False, consumed=lambda *sizes: told.append(sizes))
    assert lists(loader) == [[2, 3], [4]]
    assert told == [(2, 4), (0, 1)]


def test_a_change_of_the_world_is_seen_at_the_next_pass():
    place = [0, 1]
    loader = GlobalLoader(
        range(4), GlobalBatches(samples=4, batch_size=4, shuffle=False, seed=0), lambda: (place[0], place[1])
    )
    assert lists(loader) == [[0, 1, 2, 3]]
    place[:] = [1, 2]
    assert lists(loader) == [[2, 3]]


@given(st.integers(1, 40), st.integers(5, 9), st.booleans(), st.lists(st.integers(0, 4), min_size=3, max_size=3))
def test_the_world_may_change_in_the_middle_of_a_pass(samples, batch_size, drop_last, stays):
    batches = GlobalBatches(
        samples=max(samples, batch_size), batch_size=batch_size, shuffle=True, seed=2, drop_last=drop_last
    )
    seen, step = [], 0
    for world_size, steps in zip((4, 3, 5, 2), (*stays, batches.steps), strict=True):
        until = min(step + steps, batches.steps)
        for rank in range(world_size):
            loader = GlobalLoader(range(batches.samples), batches, lambda rank=rank, w=world_size: (rank, w))
            loader.seek(step)
            handed = [*zip(range(step, until), loader, strict=False)]
            seen += [i for at, batch in handed if batches.size(at, rank, world_size) for i in batch.tolist()]
        step = until
    whole = [i for step in range(batches.steps) for i in indices(batches, step, 0, 1)]
    assert sorted(seen) == sorted(whole)
    assert len(set(seen)) == len(seen) == loader.position(batches.steps)


@given(st.integers(1, 30), st.integers(1, 9), st.booleans(), st.data())
def test_the_shares_of_a_step_differ_by_at_most_one(samples, batch_size, drop_last, data):
    world_size = data.draw(st.integers(1, 12))
    batches = GlobalBatches(
        samples=max(samples, batch_size), batch_size=batch_size, shuffle=True, seed=2, drop_last=drop_last
    )
    for step in range(batches.steps):
        sizes = [len(indices(batches, step, rank, world_size)) for rank in range(world_size)]
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == batches.total(step)


@given(st.integers(1, 20), st.integers(1, 9), st.data())
def test_an_evaluation_sees_every_sample_once_with_nothing_padded(samples, batch_size, data):
    world_size = data.draw(st.integers(1, batch_size))
    views = [loader_of(samples, batch_size, rank, world_size).evaluation() for rank in range(world_size)]
    batches = [lists(view) for view in views]
    assert [len(view) for view in views] == [len(of_rank) for of_rank in batches]
    assert sorted(i for of_rank in batches for batch in of_rank for i in batch) == list(range(samples))


def test_an_evaluation_of_less_data_than_ranks_gives_some_ranks_nothing():
    views = [loader_of(2, 4, rank, 4).evaluation() for rank in range(4)]
    assert [len(view) for view in views] == [1, 1, 0, 0]
    assert [len(lists(view)) for view in views] == [1, 1, 0, 0]


def test_evaluations_are_all_equal_and_leave_the_training_pass_alone():
    loader, whole = loader_of(), lists(loader_of())
    iterator = iter(loader)
    got = [next(iterator).tolist()]
    first, second = lists(loader.evaluation()), lists(loader.evaluation())
    got += lists(iterator)
    assert first == second
    assert got == whole


def test_an_evaluation_tells_what_it_consumed():
    told = []
    loader = loader_of(5, 4, rank=0, world_size=2, consumed=lambda *sizes: told.append(sizes))
    lists(loader.evaluation())
    assert told == [(2, 0), (1, 0)]


def test_options_go_to_torch():
    loader = loader_of(shuffle=False, collate_fn=lambda samples: ["collated", *samples])
    assert next(iter(loader)) == ["collated", 0, 1, 2, 3]
    with pytest.raises(TypeError, match="no_such_option"):
        next(iter(loader_of(no_such_option=1)))


@pytest.mark.parametrize("pick", [lambda loader: loader, GlobalLoader.evaluation])
def test_the_random_numbers_of_the_trainer_are_untouched(pick):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    lists(pick(loader_of()))
    assert torch.equal(torch.get_rng_state(), before)


def children():
    return {p.pid for p in psutil.Process().children(recursive=True)}


def test_loader_processes_give_the_same_batches_and_stay_until_the_loader_goes():
    plain = loader_of(9, dataset=Squares())
    loader = loader_of(9, dataset=Squares(), num_workers=2)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    mine, theirs = [*plain, *plain], [*loader, *loader]
    assert all(torch.equal(a[:, 0], b[:, 0]) for a, b in zip(mine, theirs, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    pids = {pid for batch in theirs for pid in batch[:, 1].tolist()}
    assert len(pids) == 2
    assert pids <= children()
    assert all(batch[:, 2].eq(1).all() for batch in theirs)
    assert loader._fetcher.loader.multiprocessing_context.get_start_method() == "forkserver"
    del loader
    wait_until(lambda: not pids & children(), what="the loader's processes to end")


def test_a_seek_with_loader_processes_goes_on_exactly():
    whole = [*loader_of(9, dataset=Squares())]
    loader = loader_of(9, dataset=Squares(), num_workers=1)
    iterator = iter(loader)
    next(iterator)
    loader.seek(2)
    (last,) = loader
    assert torch.equal(last[:, 0], whole[2][:, 0])
