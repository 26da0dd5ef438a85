"""Random numbers of samples: keyed by seed, pass and index, and by nothing else."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from workers import sample_rng as from_the_face
from workers.data.loader import GlobalLoader
from workers.data.randomness import SampleRng, sample_rng
from workers.data.sampler import GlobalBatches
from workers.errors import ProgramError

N = 10


def drawn():
    rng = sample_rng()
    return [rng.python.random(), rng.numpy.random(), torch.rand((), generator=rng.torch).item()]


class Drawing:
    """Samples that tell their index and what was drawn for them."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        return torch.tensor([index, *drawn()], dtype=torch.float64)


class Together(Drawing):
    """The same, fetched a batch at a time."""

    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Global(Drawing):
    """An augmentation as they are mostly written: from the generators of the process."""

    def __getitem__(self, index):
        numbers = [random.random(), np.random.rand(), torch.rand(()).item()]
        return torch.tensor([index, *numbers], dtype=torch.float64)


class GlobalTogether(Global):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


def loader_of(dataset, rank=0, world_size=1, seed=1, **options):
    batches = GlobalBatches(samples=N, batch_size=4, shuffle=True, seed=seed)
    return GlobalLoader(dataset, batches, lambda: (rank, world_size), **options)


def told(batches):
    """index → numbers"""
    return {int(row[0]): tuple(row[1:].tolist()) for batch in batches for row in batch}


def one_pass(dataset, world_size=1, step=0, **options):
    found = {}
    for rank in range(world_size):
        loader = loader_of(dataset, rank, world_size, **options)
        loader.seek(step)
        found |= told(loader)
    return found


def test_the_face_gives_the_same_function():
    assert from_the_face is sample_rng


@pytest.mark.parametrize("dataset", [Drawing(), Together()])
def test_every_sample_has_numbers_of_its_own(dataset):
    numbers = [number for row in one_pass(dataset).values() for number in row]
    assert len(set(numbers)) == len(numbers) == 3 * N


@pytest.mark.parametrize("dataset", [Drawing(), Together()])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_numbers_do_not_depend_on_ranks_or_on_how_samples_are_fetched(dataset, world_size):
    assert one_pass(dataset, world_size) == one_pass(Drawing())


@pytest.mark.parametrize("dataset", [Drawing(), Together()])
@pytest.mark.parametrize("processes", [1, 2])
def test_the_numbers_do_not_depend_on_loader_processes(dataset, processes):
    assert one_pass(dataset, num_workers=processes) == one_pass(Drawing())


def test_a_resumed_pass_draws_what_it_would_have_drawn():
    whole, rest = one_pass(Drawing(), step=3), one_pass(Drawing(), step=4)
    assert rest == {index: whole[index] for index in rest}
    assert len(rest) == 6


def test_another_pass_and_another_seed_draw_other_numbers():
    first, second, other = one_pass(Drawing()), one_pass(Drawing(), step=3), one_pass(Drawing(), seed=2)
    assert not {*first.values()} & {*second.values()}
    assert not {*first.values()} & {*other.values()}


def test_an_evaluation_draws_the_same_numbers_every_time():
    loader = loader_of(Drawing())
    assert told(loader) == one_pass(Drawing())
    assert told(loader.evaluation()) == told(loader.evaluation()) == one_pass(Drawing())


def test_a_second_call_goes_on_with_the_same_generators():
    class Twice(Drawing):
        def __getitem__(self, index):
            once, again = sample_rng(), sample_rng(index)
            assert once is again
            return torch.tensor([index, once.python.random(), again.python.random(), 0.0], dtype=torch.float64)

    assert all(a != b for a, b, _ in one_pass(Twice()).values())


def test_a_fetch_of_a_batch_may_name_the_sample():
    class Named(Drawing):
        def __getitems__(self, indices):
            table = np.asarray(indices)
            return [torch.tensor([i, *(sample_rng(i).numpy.random(3))], dtype=torch.float64) for i in table]

    assert one_pass(Named()).keys() == {*range(N)}
    assert one_pass(Named(), 2) == one_pass(Named())


def test_a_subset_gives_each_sample_its_own_numbers():
    numbers = one_pass(Subset(Drawing(), range(N)))
    assert numbers == one_pass(Drawing())


@pytest.mark.parametrize(
    "fetch",
    [
        lambda indices: [sample_rng() for _ in [*indices]],
        lambda indices: [sample_rng() for _ in range(len(indices))],
        lambda indices: [next(iter(indices)), sample_rng()],
    ],
)
def test_a_fetch_of_a_batch_that_does_not_say_which_sample_is_refused(fetch):
    class Unclear(Drawing):
        def __getitems__(self, indices):
            return fetch(indices)

    with pytest.raises(ProgramError) as error:
        one_pass(Unclear())
    assert str(error.value) == (
        "sample_rng(): expected the index of one sample, received none while a whole batch is fetched; "
        "call sample_rng(index) in __getitems__, or draw while going through its indices"
    )


@pytest.mark.parametrize("around", [lambda: None, lambda: [*loader_of(Drawing())]])
def test_outside_of_a_fetch_there_are_no_numbers(around):
    around()
    with pytest.raises(ProgramError) as error:
        sample_rng()
    assert str(error.value) == (
        "sample_rng(): expected a call inside dataset[i], while a loader of worker.loader fetches the sample, "
        "received one outside of it; draw in the data set, or use a generator of your own"
    )


@pytest.mark.parametrize("dataset", [Drawing(), Together()])
def test_the_generators_of_the_ranks_own_process_are_untouched(dataset):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    one_pass(dataset)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


@pytest.mark.parametrize("dataset", [Global(), GlobalTogether()])
def test_in_loader_processes_the_usual_generators_are_keyed_too(dataset):
    numbers = one_pass(dataset, num_workers=1)
    assert len({*numbers.values()}) == N
    assert one_pass(dataset, 2, num_workers=2) == numbers
    later = one_pass(dataset, step=1, num_workers=1)
    assert later == {index: numbers[index] for index in later}


def test_the_numbers_are_a_promise_over_versions():
    rng = SampleRng(5, 2, 7)
    assert [rng.python.randrange(1000), int(rng.numpy.integers(1000)), rng.torch.initial_seed()] == [
        163, 398, 14088863118430548311,
    ]  # fmt: skip
