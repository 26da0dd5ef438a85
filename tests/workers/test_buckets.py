"""Buckets outlive wrappers: with three ranks, where in a bucket a value lies decides the last bits of its sum."""

import itertools

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from orchestrator.checkpoints.plan import GlobalPlan
from tests.processes import joined, ranks
from workers.buckets import layout_of, starting_with
from workers.checkpointing import restore, shards_of
from workers.engine import Engine
from workers.locations import storage_at
from workers.parcels import LoadPoint
from workers.program import Program
from workers.rank import Membership
from workers.strategy import DataParallel
from workers.worker import Worker

ITERATIONS = 6
CUTS = (1, 4)  # checkpoints: before DDP itself would have rebuilt its buckets, and after
ORDER = [[1, 0, 5, 4, 3, 2]]
"""Parameters of `Crooked` in the order in which their gradients arrive."""


class Crooked(nn.Module):
    """A model whose parameters are not registered in the order in which they are used."""

    def __init__(self):
        super().__init__()
        self.last, self.first, self.second = nn.Linear(64, 10), nn.Linear(32, 64), nn.Linear(64, 64)

    def forward(self, x):
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A process group of this process alone."""
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def step(model):
    model(torch.ones(3, 32)).sum().backward()


# ---------------------------------------------------------------- one wrapper
@pytest.mark.parametrize("before", [0, 15])
@pytest.mark.parametrize(
    ("options", "layout"),
    [
        ({}, ORDER),
        ({"bucket_cap_mb": 0.01}, [[1, 0, 5, 4], [3, 2]]),
        ({"gradient_as_bucket_view": True}, ORDER),
        ({"find_unused_parameters": True}, None),
    ],
)
@pytest.mark.filterwarnings("ignore:find_unused_parameters")
def test_buckets_are_known_after_the_first_backward_pass(alone, options, layout, before):
    wrapper = DistributedDataParallel(Crooked(), **options)
    for _ in range(before):  # without a backward pass
        wrapper(torch.ones(3, 32))
    assert layout_of(wrapper) is None
    step(wrapper)
    assert layout_of(wrapper) == layout
    step(wrapper)
    assert layout_of(wrapper) == layout


def test_buckets_of_a_static_graph_are_known_after_the_second_backward_pass(alone):
    wrapper = DistributedDataParallel(Crooked(), static_graph=True)
    step(wrapper)
    assert layout_of(wrapper) is None
    step(wrapper)
    assert layout_of(wrapper) == ORDER


@pytest.mark.parametrize("options", [{}, {"static_graph": True}, {"bucket_cap_mb_list": [0.001, 0.01]}])
def test_a_wrapper_begins_with_the_buckets_of_another(alone, options):
    layout = [[1, 0, 5], [4, 3], [2]]
    with starting_with(layout):
        wrapper = DistributedDataParallel(Crooked(), **options)
    assert parameters_by_bucket(wrapper) == layout
    step(wrapper)


@pytest.mark.parametrize(
    "layout",
    [[[0, 1]], [[0, 1, 2, 3, 4, 5, 6]], [[0, 1, 2], [2, 3, 4, 5]], [[0, 1, 2, 3, 4, 5]], []],
    ids=["too few", "too many", "twice", "of two kinds", "none"],
)
def test_buckets_that_do_not_fit_a_model_are_ignored(alone, layout):
    def made():
        model = Crooked()
        model.second.double()
        return parameters_by_bucket(DistributedDataParallel(model))

    with starting_with(layout):
        found = made()
    assert found == made() != layout


def test_a_sparse_gradient_stays_in_a_bucket_of_its_own():
    parameters = list(nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 2)).parameters())

    def assigned():
        return distributed._compute_bucket_assignment_by_size(parameters, [1000], [True, False, False])[0]

    own = assigned()
    with starting_with([[0, 1, 2]]):
        assert assigned() == own
    with starting_with([[2], [1], [0]]):
        assert assigned() == [[0], [1], [2]]  # which DDP reverses


def parameters_by_bucket(wrapper):
    """As the reducer has them."""
    known = {parameter.data_ptr(): index for index, parameter in enumerate(wrapper.module.parameters())}
    buckets = wrapper.reducer._get_zeros_like_grad_buckets()
    return [[known[parameter.data_ptr()] for parameter in bucket.parameters()] for bucket in buckets]


def test_models_before_after_and_without_a_wrapper_have_their_own(alone):
    models = DataParallel(torch.device("cpu"))
    first, _, last = [
        models.prepare(one) for one in (Crooked(), nn.Linear(1, 1).requires_grad_(False), nn.Linear(32, 1))
    ]
    models.wrap(first=True)
    assert models.layouts() == [None, None, None]
    step(first)
    assert models.layouts() == [ORDER, None, None]
    models.wrap(first=False, layouts=models.layouts())
    assert models.layouts() == [ORDER, None, None]
    step(last)
    assert models.layouts() == [ORDER, None, [[1, 0]]]
    models.wrap(first=False)
    assert models.layouts() == [None, None, None]


# ---------------------------------------------------------------- three ranks
class Rank:
    """A rank's program, which draws its own data and trains a crooked model."""

    def __init__(self, membership):
        torch.manual_seed(0)
        self.worker = Worker(device=torch.device("cpu"), membership=membership)
        self.model = self.worker.prepare(Crooked())
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.trainer = Engine(self._step)
        state = {"model": self.model, "optimizer": self.optimizer}
        self.program = Program(engines={"trainer": self.trainer}, data={"trainer": range(ITERATIONS)}, state=state)

    def _step(self, engine, batch):
        generator = torch.Generator().manual_seed(100 * batch + self.worker.rank)
        self.optimizer.zero_grad()
        self.model(torch.randn(7, 32, generator=generator)).square().mean().backward()
        self.optimizer.step()

    def train(self, iterations):
        self.trainer.run(self.program.data["trainer"], max_iters=iterations, epoch_length=ITERATIONS)
        return torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])

    def save(self, url):
        """What ranks and driver do together."""
        shards, rank, world_size = shards_of(self.worker, self.program), self.worker.rank, self.worker.world_size
        plan = GlobalPlan(dict(enumerate(gathered(shards.plan(), world_size))), ())
        written = shards.freeze(plan.part(rank), {}).write(storage_at(url))
        results = gathered(written.results, world_size)
        if rank == 0:
            plan.write_index(storage_at(url), dict(enumerate(results)))
        distributed.barrier()


def gathered(value, world_size):
    found = [None] * world_size
    distributed.all_gather_object(found, value)
    return found


def resumed(membership, store, folder):
    """Parameters at the end: undisturbed; by iteration, resumed with the buckets of the checkpoint, and without."""
    numbers, found = itertools.count(), {}

    def generation():
        member = Membership(generation=next(numbers), rank=membership.rank, world_size=membership.world_size)
        return joined(member, store)

    with generation():
        one = Rank(membership)
        one.worker.models.wrap(first=True)
        for cut in CUTS:
            one.train(cut)
            one.save(f"{folder}/{cut}")
        undisturbed = one.train(ITERATIONS)
        one.worker.models.unwrap()
    for cut, kept in itertools.product(CUTS, (True, False)):
        with generation():
            one = Rank(membership)
            point = LoadPoint(url=f"{folder}/{cut}", world_size=membership.world_size)
            layouts = restore(one.worker, one.program, point)
            one.worker.models.wrap(first=False, layouts=layouts if kept else None)
            found[cut, kept] = one.train(ITERATIONS)
            one.worker.models.unwrap()
    return undisturbed, found


@pytest.mark.filterwarnings("ignore::workers.feed.FastForwardWarning")
def test_a_resume_of_three_ranks_is_equal_to_the_bit_only_with_the_buckets_of_the_checkpoint(tmp_path):
    with ranks(3) as world:
        told = world.run(resumed, str(tmp_path))
    for undisturbed, found in told:
        for cut in CUTS:
            assert torch.equal(found[cut, True], undisturbed)
            assert not torch.equal(found[cut, False], undisturbed)
            assert torch.allclose(found[cut, False], undisturbed, atol=1e-4)
