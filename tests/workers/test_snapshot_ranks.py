"""Snapshots over several ranks: a newcomer takes a lost rank's place, and trains on as that one would have."""

import datetime

import pytest
import torch
from torch import nn
from torch.distributed import TCPStore
from torch.utils.data import DataLoader

from tests.processes import joined, ranks
from tests.workers.training import CPU, LAST, OPTIMIZERS, SCHEDULERS, AccidentError, Odd, Training, at, equal
from workers.rank import Membership
from workers.rng import capture_rng, seed_rng

SINCE = 6


@pytest.fixture(scope="module")
def world():
    """Two ranks and a spare, or three ranks."""
    with ranks(3) as processes:
        yield processes


def shared_out(membership):
    odd = Odd()
    odd.state["average"] += membership.rank
    averaged = nn.Linear(3, 3).requires_grad_(False)
    return Training(OPTIMIZERS["AdamW"], SCHEDULERS["Sequential"], membership=membership, odd=odd, averaged=averaged)


def with_buffers_of_its_own(membership):
    return Training(OPTIMIZERS["SGD"], membership=membership, options={"broadcast_buffers": False})


def with_batches_of_its_own(membership):
    generator = torch.Generator().manual_seed(membership.rank)
    batches = (torch.randn(4, 4, generator=generator) for _ in range(20))
    return Training(OPTIMIZERS["Adam"], membership=membership, data=lambda worker: worker.loader(batches))


class Noisy(torch.utils.data.Dataset):
    """Samples that are drawn anew whenever they are asked for."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return torch.randn(4) + i


def with_a_loader_of_its_own(membership):
    loader = DataLoader(Noisy(), batch_size=4, shuffle=True)
    return Training(OPTIMIZERS["Adam"], membership=membership, data=lambda worker: worker.loader(loader))


def with_gradients_added_up(membership):
    return Training(OPTIMIZERS["Adam"], membership=membership, scaled=True, adds_up=4)


def life(place, address, make, world_size, lost):
    """A rank that lives on, one that is lost after it trained to the end, or a spare that takes its place.

    Where there is no process for a spare, the lost rank's own becomes the newcomer, with another program.

    Returns:
        Its rank, and what there was at the end of the first and of the second generation.
    """
    rank = [*range(world_size), *lost][place.rank]
    begins, ends = place.rank < world_size, world_size + len(lost) <= place.world_size and rank in lost
    store = TCPStore(*address, is_master=False, timeout=datetime.timedelta(seconds=20))
    training, first = make(Membership(generation=0, rank=rank, world_size=world_size)), None
    if begins:
        first = to_the_end(training, store, address)
    if begins and ends:
        return rank, first, None
    if begins and rank in lost:
        training = make(training.worker.membership)
    return rank, first, another_life(training, lost, store, address)


def to_the_end(training, store, address):
    """A generation whose every rank tells the driver what would die with it, trains to the end, and then fails."""
    with joined(training.worker.membership, address):
        training.worker.models.wrap(first=True)
        seed_rng(3, training.worker.rank)
        training.run_taking(3, SINCE)
        store.set(f"own {training.worker.rank}", training.owns[SINCE])
        told = training.told(SINCE)
        training.fail = LAST + 1, "backward"
        with pytest.raises(AccidentError):
            training.run(LAST + 1)
        training.fail = 0, ""
        training.worker.models.unwrap()
    return told


def another_life(training, lost, store, address):
    """From the snapshot to the end, in a new generation."""
    worker, ring = training.worker, training.ring
    worker.membership = Membership(generation=1, rank=worker.rank, world_size=worker.world_size)
    donor = next(rank for rank in range(worker.world_size) if rank not in lost)
    own = store.get(f"own {worker.rank}") if worker.rank in lost else None  # as the driver would
    with joined(worker.membership, address):
        if worker.rank in lost:
            ring.receive(at(SINCE), donor)
        elif worker.rank == donor:
            ring.give(at(SINCE), lost)
        for again in (own, None):  # then the newcomer is a rank like the others
            ring.restore(at(SINCE), again)
            worker.models.wrap(first=False, layouts=ring.layouts(at(SINCE)))
            training.run()
            worker.models.unwrap()
    return training.told(SINCE)


@pytest.mark.parametrize(
    ("world_size", "lost", "make"),
    [
        (2, [0], shared_out),
        (2, [1], with_batches_of_its_own),
        (3, [1], shared_out),
        (3, [0, 2], with_buffers_of_its_own),
        (2, [0], with_gradients_added_up),
        (2, [0], with_a_loader_of_its_own),
    ],
)
def test_a_newcomer_trains_on_as_the_lost_rank_would_have(world, world_size, lost, make):
    lives = world.run(life, make, world_size, lost)
    undisturbed = {rank: first for rank, first, _ in lives if first is not None}
    again = {rank: second for rank, _, second in lives if second is not None}
    assert again.keys() == undisturbed.keys() == set(range(world_size))
    for rank in undisturbed:
        assert equal(again[rank], undisturbed[rank]), f"rank {rank}"


def received(place, address):
    """Rank 0 gives a snapshot to rank 1, which replaces nobody."""
    if place.rank > 1:
        return None
    training = shared_out(Membership(generation=1, rank=place.rank, world_size=2))
    with joined(training.worker.membership, address):
        if place.rank == 0:
            training.run(SINCE)
            training.ring.take(at(SINCE))
            training.ring.give(at(SINCE), [1])
            training.ring.restore(at(SINCE))
        else:
            training.ring.receive(at(SINCE), 0)
            training.trainer.attached["loss"].metric.update(1.0)
            for _ in range(2):
                training.ring.restore(at(SINCE))
                rng = capture_rng(CPU)
                torch.rand(3)
            seed_rng(3 + SINCE, 1)
            assert equal(rng, capture_rng(CPU))
            assert not training.trainer.attached["loss"].updated
            assert training.ring.held == (at(SINCE),)
    return training.told(), training.trainer.state.iteration, training.worker.samples


def test_a_rank_that_replaces_nobody_begins_where_the_donor_is(world):
    (donor, at_donor, _), (newcomer, at_newcomer, samples) = world.run(received)[:2]
    assert at_donor == at_newcomer == SINCE
    assert samples == 0
    assert equal(donor[1], newcomer[1])


def interrupted(place, address):
    """The donor is gone in the middle."""
    if place.rank > 1:
        return None
    training = shared_out(Membership(generation=1, rank=place.rank, world_size=2))
    with joined(training.worker.membership, address, timeout=5.0):
        training.ring.take(at(0))
        if place.rank == 0:
            torch.distributed.send(torch.tensor([100]), 1)
            return None
        with pytest.raises(RuntimeError):
            training.ring.receive(at(3), 0)
        return training.ring.held


def test_what_was_not_received_whole_is_not_held(world):
    assert world.run(interrupted)[1] == (at(0),)
