"""What `worker.loader` makes of what it is given, and what it refuses."""

import itertools

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler

from workers.data.loader import GlobalLoader
from workers.data.sources import HandedOut, RankBatches, StatefulBatches
from workers.engine import Engine
from workers.errors import FastForwardWarning, ProgramError
from workers.rank import Membership
from workers.worker import Worker


def worker_of(rank=0, world_size=2, **fields):
    membership = Membership(generation=0, rank=rank, world_size=world_size)
    return Worker(device=torch.device("cpu"), membership=membership, **fields)


class Endless(IterableDataset):
    def __iter__(self):
        return iter(range(8))


class Part:
    """Stands for a rank's part of a Ray data set: 12 rows."""

    def __init__(self):
        self.asked = []

    def iter_torch_batches(self, *, batch_size, drop_last, **options):
        self.asked.append({"batch_size": batch_size, "drop_last": drop_last, **options})
        return ({"id": rows} for rows in torch.arange(12).split(batch_size))


class Place:
    """A Stateful loader of five batches that begins each pass anew; its state is plain data."""

    def __init__(self):
        self.next = 0

    def __len__(self):
        return 5

    def __iter__(self):
        while self.next < 5:
            self.next += 1
            yield torch.full((2,), self.next - 1)
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


SOURCES = [
    (lambda: DataLoader(range(8), batch_size=2), RankBatches, 4),
    (lambda: DataLoader(Endless(), batch_size=2), RankBatches, None),
    (lambda: Endless(), RankBatches, None),
    (lambda: {1: "a"}.keys(), RankBatches, 1),
    (lambda: (batch for batch in [1, 2]), HandedOut, None),
    (lambda: StatefulDataLoader(range(8), batch_size=2), StatefulBatches, 4),
    (Place, StatefulBatches, 5),
]


@pytest.mark.parametrize(("make", "kind", "length"), SOURCES)
def test_every_kind_of_source_gets_its_loader(make, kind, length):
    loader = worker_of().loader(make())
    assert type(loader) is kind
    if length is not None:
        assert len(loader) == length
    elif kind is RankBatches:
        with pytest.raises(TypeError):
            len(loader)


def test_data_with_a_length_and_indices_is_shared_out():
    assert type(worker_of().loader([1, 2, 3], global_batch_size=2)) is GlobalLoader


def test_a_rank_reads_all_that_its_own_loader_gives_and_counts_it():
    worker = worker_of()
    sizes = [(batch.tolist(), worker.batch_size) for batch in worker.loader(DataLoader(range(5), batch_size=2))]
    assert sizes == [([0, 1], 2), ([2, 3], 2), ([4], 1)]
    assert worker.samples == 5


def test_the_gradients_of_own_batches_are_not_weighted():
    worker = worker_of()
    next(iter(worker.loader(DataLoader(range(5), batch_size=3))))
    weight = torch.zeros((), requires_grad=True)
    worker.backward(weight * 3)
    assert weight.grad == 3


def test_a_share_of_ray_data_is_read_with_this_ranks_part_of_the_batch():
    worker, part = worker_of(1, 3), Part()
    loader = worker.loader(part, global_batch_size=6, drop_last=True, prefetch_batches=2)
    assert [batch["id"].tolist() for batch in loader] == [[i, i + 1] for i in range(0, 12, 2)]
    assert len([*loader]) == 6
    assert part.asked == [{"batch_size": 2, "drop_last": True, "device": "cpu", "prefetch_batches": 2}] * 2
    assert (worker.samples, worker.batch_size) == (24, 2)


TOGETHER = "give the number of samples that all ranks together take in one step"
REFUSED = [
    (
        lambda: 7,
        {},
        "source: expected a map-style data set (len(data) and data[i]), an iterable of batches, a Stateful loader or a "
        "rank's part of a Ray data set, received int; give it one of these",
    ),
    (lambda: [1, 2], {}, "global_batch_size: expected a positive whole number, received none; " + TOGETHER),
    *(
        (
            make,
            {"global_batch_size": 8},
            f"global_batch_size: expected none with {name}, which brings batches of its own on every rank, received 8; "
            "leave it out and set the size there (for samples: DataLoader(data, batch_size=...)), or give a map-style "
            "data set, which is shared out",
        )
        for make, name in (
            (lambda: DataLoader(range(8)), "DataLoader"),
            (Endless, "Endless"),
            (lambda: StatefulDataLoader(range(8)), "StatefulDataLoader"),
        )
    ),
    (
        lambda: DataLoader(range(8)),
        {"shuffle": True, "num_workers": 2},
        "shuffle, num_workers: expected no options with DataLoader, which brings batches of its own, received "
        "shuffle=True, num_workers=2; set them there",
    ),
    (Part, {}, "global_batch_size: expected a positive whole number, received none; " + TOGETHER),
    (
        Part,
        {"global_batch_size": 7},
        "global_batch_size: expected a multiple of the 2 ranks with Ray Data, which gives each of them equally many "
        "rows, received 7; else some would have more batches than others: take 6 or 8",
    ),
    (
        Part,
        {"global_batch_size": 8, "shuffle": True},
        "shuffle: expected False with Ray Data, whose order is its own, received True; shuffle with "
        "ds.randomize_block_order() or ds.random_shuffle() on the driver, or give local_shuffle_buffer_size",
    ),
]


@pytest.mark.parametrize(("make", "options", "text"), REFUSED)
def test_what_does_not_fit_the_source_is_refused(make, options, text):
    with pytest.raises(ProgramError) as error:
        worker_of().loader(make(), **options)
    assert str(error.value) == f"worker.loader: {text}"


# ---------------------------------------------------------------- going on
def trained(make, iterations, saved=None, at=None):
    """Batches that an engine saw up to `iterations`; saves at iteration `at`, or goes on from what was saved."""
    worker = worker_of()
    engine, seen = Engine(lambda engine, batch: seen.append(batch.tolist())), []
    loader = worker.loader(make())
    if saved is not None:
        engine.load_state_dict(saved)
    if at is not None:
        engine.run(loader, max_iters=at)
        return seen, engine.state_dict(), worker
    engine.run(loader, max_iters=iterations)
    return seen, None, worker


def shuffled():
    sampler = RandomSampler(range(10), generator=torch.Generator().manual_seed(3))
    return StatefulDataLoader(range(10), batch_size=2, sampler=sampler)


@pytest.mark.parametrize("make", [Place, shuffled])
@pytest.mark.parametrize("at", [1, 3, 5, 7])
def test_a_stateful_loader_resumes_exactly(make, at):
    whole, _, _ = trained(make, 12)
    before, saved, _ = trained(make, 12, at=at)
    after, _, worker = trained(make, 12, saved=saved)
    assert before == whole[:at]
    assert after == whole[at:]
    assert worker.samples == 2 * (12 - at)


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (lambda: DataLoader(range(10), batch_size=2), 2),  # of known length: only what is left after whole passes
        (lambda: DataLoader(Endless(), batch_size=2), 7),
    ],
)
def test_another_iterable_is_read_up_to_its_place_and_that_is_told(make, read):
    whole, _, _ = trained(make, 12)
    _, saved, _ = trained(make, 12, at=7)
    with pytest.warns(FastForwardWarning, match=rf"^run\(data\): {read} batches were read and thrown away in"):
        after, _, worker = trained(make, 12, saved=saved)
    assert after == whole[7:]
    assert worker.samples == 2 * len(after)  # not what was thrown away


def test_an_iterator_goes_on_where_it_was_left():
    worker, seen = worker_of(), []
    loader = worker.loader(itertools.count())
    engine = Engine(lambda engine, batch: seen.append(batch))
    engine.run(loader, max_iters=3)
    engine.run(loader, max_iters=5)
    assert seen == [0, 1, 2, 3, 4]


def test_a_stateful_loader_that_was_saved_at_its_end_is_whole_at_an_evaluation():
    first = worker_of().loader(StatefulDataLoader(range(4), batch_size=2))
    evaluator, seen = Engine(lambda engine, batch: seen.append(batch.tolist())), []
    evaluator.run(first, max_epochs=1)
    again = worker_of().loader(StatefulDataLoader(range(4), batch_size=2))
    again.load_state_dict(first.state_dict())
    evaluator.run(again, max_epochs=1, resume_from_iteration=0)
    assert seen == [[0, 1], [2, 3]] * 2
