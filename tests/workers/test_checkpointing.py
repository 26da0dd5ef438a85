"""A rank's whole state into a checkpoint and back: the same world, a larger one, and a program that has changed."""

import random
from types import SimpleNamespace

import pytest
import torch

from tests.checkpoints import written
from workers.apart import spread_entries
from workers.checkpointing import cursor_of, restore, shards_of
from workers.engine import Engine
from workers.errors import ProgramError, UnreadableError
from workers.faults import fault_kind
from workers.locations import storage_at
from workers.metrics import attach_metric
from workers.parcels import LoadPoint
from workers.program import Program
from workers.rank import Membership
from workers.rng import capture_rng, restore_rng
from workers.worker import Worker

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def generators_stay():
    state = capture_rng(CPU)
    yield
    restore_rng(state, CPU)


class Stream:
    """Data with a position of its own."""

    def __init__(self):
        self.place = 0

    def __iter__(self):
        while True:
            self.place += 1
            yield self.place

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


class Rank:
    """A rank's worker and program; the step draws random numbers."""

    def __init__(self, rank, world_size, **state):
        torch.manual_seed(1)
        self.worker = Worker(device=CPU, seed=3, membership=Membership(generation=0, rank=rank, world_size=world_size))
        self.model = torch.nn.Linear(2, 1)
        self.drawn = []
        self.trainer, self.side = Engine(self._step), Engine(lambda engine, batch: batch)
        attach_metric(self.trainer, "sum", "sum")
        self.stream = Stream()
        loader = self.worker.loader(torch.arange(8.0), global_batch_size=4, shuffle=True)
        self.program = Program(
            engines={"trainer": self.trainer, "side": self.side},
            data={"trainer": loader, "side": self.stream},
            state={"model": self.model, **state},
        )

    def _step(self, engine, batch):
        self.drawn.append((random.random(), torch.rand(()).item(), batch.tolist()))
        with torch.no_grad():
            self.model.weight += batch.mean()
        return float(len(self.drawn))

    def run(self, iterations):
        torch.manual_seed(self.worker.rank)
        random.seed(self.worker.rank)
        self.go_on(iterations)
        self.side.run(self.stream, epoch_length=3)

    def go_on(self, iterations):
        self.trainer.run(self.program.data["trainer"], max_iters=iterations)


def save(folder, *ranks):
    """What ranks and driver do together."""
    written(storage_at(folder), [shards_of(rank.worker, rank.program) for rank in ranks])
    return LoadPoint(url=str(folder), world_size=len(ranks))


@pytest.fixture
def point(tmp_path):
    """A checkpoint of two ranks in the middle of their second epoch, and the ranks."""
    ranks = []
    for rank in (0, 1):
        ranks.append(Rank(rank, 2))
        ranks[-1].run(3)
        ranks[-1].shards = shards_of(ranks[-1].worker, ranks[-1].program)  # its random numbers are those of now
    written(storage_at(tmp_path), [rank.shards for rank in ranks])
    return LoadPoint(url=str(tmp_path), world_size=2), ranks


@pytest.mark.parametrize("number", [0, 1])
def test_a_restored_rank_goes_on_as_if_undisturbed(point, number):
    load, ranks = point
    undisturbed = ranks[number]
    restored = Rank(number, 2)
    restore(restored.worker, restored.program, load)
    assert restored.worker.samples == undisturbed.worker.samples == 6
    assert restored.stream.place == 3
    restored.go_on(6)
    drawn = restored.drawn
    restore(undisturbed.worker, undisturbed.program, load)  # its random numbers, which the other rank has used
    undisturbed.go_on(6)
    assert drawn == undisturbed.drawn[3:]
    assert torch.equal(restored.model.weight, undisturbed.model.weight)
    assert restored.side.state.iteration == 3


def test_a_rank_that_was_not_there_takes_the_place_but_not_what_rank_0_saw(point):
    load, ranks = point
    stranger = Rank(2, 3)
    restore(stranger.worker, stranger.program, load)
    assert stranger.trainer.state.iteration == 3
    assert torch.equal(stranger.model.weight, ranks[0].model.weight)
    assert not stranger.trainer.attached["sum"].updated
    assert stranger.worker.samples == 0
    first = torch.rand(3)
    known = Rank(0, 3)
    restore(known.worker, known.program, load)
    assert known.trainer.attached["sum"].updated
    assert not torch.equal(torch.rand(3), first)


@pytest.mark.parametrize("entries", [None, ("model",)])
@pytest.mark.parametrize("path", ["shared.pt", "index.json", "data/__0_0.distcp"])
@pytest.mark.parametrize("spoil", [lambda storage, path: storage.remove(path), lambda s, path: s.replace(path, b"x")])
def test_what_a_rank_can_not_read_is_no_fault_of_the_user(point, entries, path, spoil):
    load, _ = point
    spoil(storage_at(load.url), path)
    fresh = Rank(0, 2)
    with pytest.raises(UnreadableError, match=rf"^checkpoint {load.url}: can't be read: \w+: ") as caught:
        restore(fresh.worker, fresh.program, LoadPoint(url=load.url, world_size=2, entries=entries))
    assert fault_kind(caught.value) == "system"


def test_a_state_that_the_checkpoint_lacks_is_named(point):
    load, _ = point
    changed = Rank(0, 2, head=torch.nn.Linear(1, 1), tail=torch.nn.Linear(1, 1))
    with pytest.raises(ProgramError) as error:
        restore(changed.worker, changed.program, load)
    assert str(error.value) == (
        "checkpoint: state 'head', 'tail': expected the checkpoint to hold it, received 'model'; "
        "give the run another name to start afresh"
    )


def test_an_engine_that_the_checkpoint_lacks_is_named(point):
    load, _ = point
    changed = Rank(0, 2)
    changed.program.engines["third"] = Engine(print)
    with pytest.raises(
        ProgramError,
        match=r"^checkpoint: engine 'third': expected the checkpoint to hold it, received 'side', 'trainer'; give",
    ):
        restore(changed.worker, changed.program, load)


def test_data_that_the_checkpoint_does_not_know_begins_at_its_beginning(point):
    load, _ = point
    changed = Rank(0, 2)
    fresh = Stream()
    changed.program.data["third"] = fresh
    restore(changed.worker, changed.program, load)
    assert fresh.place == 0


def test_the_place_of_stateful_data_is_refused_at_another_world_size(tmp_path):
    ranks = [Rank(rank, 2) for rank in (0, 1)]
    for rank in ranks:
        rank.program.data["trainer"] = rank.worker.loader(Stream())
        rank.trainer.process_function = lambda engine, batch: 1.0
        rank.trainer.run(rank.program.data["trainer"], max_iters=3, epoch_length=5)
    load = save(tmp_path, *ranks)
    for number in (0, 2):
        other = Rank(number, 3)
        other.program.data["trainer"] = other.worker.loader(Stream())
        with pytest.raises(ProgramError) as error:
            restore(other.worker, other.program, load)
        assert str(error.value) == (
            "checkpoint: data['trainer']: expected the world size at which it was saved, 2, received 3; a Stateful "
            "loader keeps the place of each rank in its own part of the data, which can't be shared out anew: run with "
            "workers: 2, or give worker.loader a map-style data set"
        )


def test_stateful_data_goes_on_where_each_rank_was(tmp_path):
    ranks = [Rank(rank, 2) for rank in (0, 1)]
    for rank in ranks:
        rank.stream.place = 10 * rank.worker.rank
        rank.program.data["trainer"] = rank.worker.loader(rank.stream)
        rank.trainer = Engine(lambda engine, batch: batch)
        rank.program.engines["trainer"] = rank.trainer
        rank.trainer.run(rank.program.data["trainer"], max_iters=3, epoch_length=5)
    load = save(tmp_path, *ranks)
    for number in (0, 1):
        again, seen = Rank(number, 2), []
        loader = again.program.data["trainer"] = again.worker.loader(Stream())
        again.program.engines["trainer"] = Engine(lambda engine, batch, seen=seen: seen.append(batch))
        restore(again.worker, again.program, load)
        again.program.engines["trainer"].run(loader, max_iters=5)
        assert seen == [10 * number + 4, 10 * number + 5]


# ---------------------------------------------------------------- what is told beside the state
def test_the_cursor_tells_seed_position_and_whose_data_it_is():
    rank = Rank(1, 2)
    rank.run(3)
    cursor, data = cursor_of(rank.program)
    assert cursor == {"seed": 3, "position": 12}
    assert data
    assert data == cursor_of(Rank(0, 2).program)[1]


def test_data_without_a_global_order_has_no_cursor():
    rank = Rank(0, 1)
    rank.program.data["trainer"] = [1, 2]
    assert cursor_of(rank.program) == ({}, {})


def test_prepared_models_and_optimizers_may_be_shared_out_and_nothing_else():
    rank = Rank(0, 2, other=torch.nn.Linear(1, 1))
    model = rank.worker.prepare(torch.nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters())
    rank.program.state.update(prepared=model, optimizer=optimizer)
    assert spread_entries(rank.worker, rank.program) == ("prepared", "optimizer")


def test_an_optimizer_of_what_is_not_prepared_is_not_shared_out():
    rank = Rank(0, 2)
    model = rank.worker.prepare(torch.nn.Linear(2, 1))
    own = torch.nn.Parameter(torch.zeros(1))
    rank.program.state["optimizer"] = torch.optim.SGD([*model.parameters(), own])
    assert spread_entries(rank.worker, rank.program) == ()


@pytest.mark.parametrize(("broadcast", "spread"), [(None, ()), (False, ()), (True, ("norm",))])
def test_a_model_with_buffers_is_shared_out_only_if_they_were_broadcast(broadcast, spread):
    rank = Rank(0, 2)
    rank.program.state["norm"] = rank.worker.prepare(torch.nn.BatchNorm1d(2))
    if broadcast is not None:
        rank.worker.models._routes[0].wrapper = SimpleNamespace(broadcast_buffers=broadcast)
    assert spread_entries(rank.worker, rank.program) == spread


# ---------------------------------------------------------------- only a part of it
@pytest.mark.parametrize("entries", [None, ("adam",)])
def test_an_optimizer_of_another_kind_or_order_is_refused_with_words(tmp_path, entries):
    def rank(kind, order):
        rank = Rank(0, 1)
        rank.program.state["adam"] = kind(order(list(rank.model.parameters())), lr=0.1)
        return rank

    saved = rank(torch.optim.Adam, list)
    written(storage_at(tmp_path), [shards_of(saved.worker, saved.program)])
    point = LoadPoint(url=str(tmp_path), world_size=1, entries=entries)
    for kind, order, told in (
        (torch.optim.SGD, list, "expected the state of a SGD "),
        (torch.optim.Adam, lambda found: found[::-1], "expected its parameter 0 to be model.weight of shape"),
    ):
        other = rank(kind, order)
        with pytest.raises(ProgramError, match=f"state 'adam': {told}"):
            restore(other.worker, other.program, point)


def test_a_new_program_takes_only_the_entries_that_it_names(point):
    load, ranks = point
    fresh = Rank(0, 1, head=torch.nn.Linear(1, 1))
    before = torch.get_rng_state()
    restore(fresh.worker, fresh.program, LoadPoint(url=load.url, world_size=2, entries=("model",)))
    assert torch.equal(fresh.model.weight, ranks[0].model.weight)
    assert (fresh.trainer.state.iteration, fresh.worker.samples, fresh.stream.place) == (0, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        (
            ("head",),
            "state 'head': expected the checkpoint to hold it, received 'model'; leave it out of start_from",
        ),
        (
            ("gone",),
            "state 'gone': expected the checkpoint to hold it, received 'model'; leave it out of start_from",
        ),
    ],
)
def test_an_entry_that_the_checkpoint_lacks_is_named(point, entries, told):
    load, _ = point
    fresh = Rank(0, 1, head=torch.nn.Linear(1, 1))
    with pytest.raises(ProgramError, match=told):
        restore(fresh.worker, fresh.program, LoadPoint(url=load.url, world_size=2, entries=entries))


def test_an_entry_of_another_run_that_does_not_fit_is_told_with_the_ways_there_are(point):
    load, _ = point
    fresh = Rank(0, 1)
    fresh.program.state["model"] = torch.nn.Linear(7, 7)
    told = (
        r"state 'model': .*size mismatch.*; give what is new in it an entry of its own, leave 'model' out of start_fro"
    )
    with pytest.raises(ProgramError, match=f"(?s){told}"):
        restore(fresh.worker, fresh.program, LoadPoint(url=load.url, world_size=2, entries=("model",)))


def test_an_entry_that_the_program_lacks_is_named(point):
    load, _ = point
    fresh = Rank(0, 1)
    fresh.program.state["other"] = fresh.program.state.pop("model")
    with pytest.raises(
        ProgramError,
        match=r"state 'model': expected the program to hold it, received 'other'; leave it out of start_from\.state$",
    ):
        restore(fresh.worker, fresh.program, LoadPoint(url=load.url, world_size=2, entries=("model",)))


def test_a_stranger_without_what_rank_0_has_attached_keeps_its_own(point):
    load, _ = point
    stranger = Rank(2, 3)
    attach_metric(stranger.trainer, "more", "sum")
    restore(stranger.worker, stranger.program, load)
    assert set(stranger.trainer.attached) == {"sum", "more"}
    assert stranger.trainer.state.iteration == 3
