"""What `build` receives: who this rank is, loaders that fit the world, gradients weighted by samples."""

import pytest
import torch

from workers.errors import ProgramError
from workers.rank import Membership
from workers.worker import Worker

CPU = torch.device("cpu")


def worker_of(rank=0, world_size=1, **fields):
    membership = Membership(generation=3, rank=rank, world_size=world_size, local_rank=rank)
    return Worker(device=CPU, membership=membership, **fields)


def test_a_worker_made_by_hand_is_a_world_of_one():
    worker = Worker()
    assert (worker.rank, worker.world_size, worker.local_rank, worker.generation) == (0, 1, 0, 0)
    assert worker.config == {}
    assert worker.all_reduce(3.0) == 3.0


def test_a_worker_tells_its_place():
    worker = worker_of(1, 2)
    assert (worker.rank, worker.world_size, worker.local_rank, worker.generation) == (1, 2, 1, 3)


def test_the_config_is_a_copy():
    config = {"lr": 0.1}
    worker_of(config=config).config["lr"] = 1.0
    assert config == {"lr": 0.1}


class FakeAccelerator:
    def __init__(self, kind):
        self.kind = kind

    def is_available(self):
        return True

    def current_accelerator(self):
        return self.kind


@pytest.mark.parametrize(("kind", "device"), [(torch.device("cuda"), "cuda:0"), (None, "cpu")])
def test_the_device_is_the_first_accelerator_of_the_process(monkeypatch, kind, device):
    monkeypatch.setattr(torch, "accelerator", FakeAccelerator(kind))
    assert str(Worker().device) == device


LOADER_ERRORS = [
    (
        [],
        {"global_batch_size": 4},
        "dataset: expected at least one sample, received an empty data set; give data that has one",
    ),
    *(
        (
            [1],
            {"global_batch_size": size},
            f"global_batch_size: expected a positive whole number, received {size!r}; give the number of samples that "
            "all ranks together take in one step",
        )
        for size in (0, -1, 2.0, "8", True)
    ),
    (
        [1, 2],
        {"global_batch_size": 1},
        "global_batch_size: expected at least one sample for each of the 2 ranks, received 1; it counts the samples "
        "of all ranks together: raise it, or use fewer workers",
    ),
    (
        [1, 2, 3],
        {"global_batch_size": 4, "drop_last": True},
        "drop_last: expected at least one whole batch of 4 samples, received data of 3, of which nothing would be "
        "left; make the batch smaller, or keep the last one",
    ),
]


@pytest.mark.parametrize(("dataset", "options", "text"), LOADER_ERRORS)
def test_a_loader_that_can_not_work_is_refused(dataset, options, text):
    with pytest.raises(ProgramError) as error:
        worker_of(0, 2).loader(dataset, **options)
    assert str(error.value) == f"worker.loader: {text}"


def test_a_loader_gives_this_ranks_share_in_the_order_of_the_seed():
    loaders = [worker_of(rank, 2, seed=4).loader(range(6), global_batch_size=4, shuffle=True) for rank in (0, 1)]
    shares = [[batch.tolist() for batch in loader] for loader in loaders]
    other = worker_of(0, 1, seed=5).loader(range(6), global_batch_size=4, shuffle=True)
    assert [a + b for a, b in zip(*shares, strict=True)] == [
        batch.tolist() for batch in worker_of(0, 1, seed=4).loader(range(6), global_batch_size=4, shuffle=True)
    ]
    assert [batch.tolist() for batch in other] != [a + b for a, b in zip(*shares, strict=True)]


def test_a_loader_passes_options_on():
    loader = worker_of().loader([1, 2], global_batch_size=2, drop_last=True, collate_fn=tuple)
    assert [*loader] == [(1, 2)]


def test_samples_and_batch_size_follow_the_loader():
    worker = worker_of(1, 2)
    sizes = [worker.batch_size for _ in worker.loader(range(5), global_batch_size=4)]
    assert sizes == [2, 0]
    assert worker.samples == 2


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_mean_gradient_over_ranks_is_that_of_the_whole_batch(world_size):
    x = torch.arange(1.0, 6.0)
    total = torch.zeros(2)  # one number for each of the two batches, 3 and 2 samples
    for rank in range(world_size):
        worker = worker_of(rank, world_size)
        for step, batch in enumerate(worker.loader(x, global_batch_size=3)):
            weight = torch.zeros((), requires_grad=True)
            worker.backward((weight * batch).mean())
            total[step] += weight.grad / world_size
    assert total.tolist() == pytest.approx([2.0, 4.5])


def test_a_batch_smaller_than_the_world_counts_in_full():
    gradients = []
    for rank in (0, 1, 2):
        worker = worker_of(rank, 3)
        (batch,) = worker.loader(torch.tensor([1.0, 2.0, 3.0, 4.0])[3:], global_batch_size=3)
        weight = torch.zeros((), requires_grad=True)
        worker.backward((weight * batch).mean())
        gradients.append(weight.grad.item() / 3)
    assert sum(gradients) == 4.0


def test_a_loss_without_a_loader_is_not_weighted():
    weight = torch.zeros((), requires_grad=True)
    worker_of(0, 2).backward(weight * 3)
    assert weight.grad == 3


def test_what_is_set_aside_begins_without_a_batch_and_changes_nothing():
    worker = worker_of(1, 2)
    for _ in worker.loader(range(5), global_batch_size=4):
        pass
    with worker.set_aside():
        assert worker.batch_size == 1  # an evaluation over plain data must not take the stand-in for its own
        next(iter(worker.loader(range(9), global_batch_size=8)))
        assert worker.batch_size == 4
    assert (worker.batch_size, worker.samples) == (0, 2)


def test_a_model_is_prepared_once():
    worker = worker_of()
    handle = worker.prepare(torch.nn.Linear(2, 1))
    text = (
        "worker.prepare: expected a plain module, received Linear that is prepared already; pass the module you built"
    )
    with pytest.raises(TypeError) as error:
        worker.prepare(handle)
    assert str(error.value) == text


def test_no_sync_of_a_world_of_one_does_nothing():
    worker = worker_of()
    with worker.no_sync(worker.prepare(torch.nn.Linear(2, 1))):
        pass
    with worker.no_sync(torch.nn.Linear(2, 1)):
        pass


def test_collectives_of_a_world_of_one_give_the_value_back():
    worker = worker_of()
    worker.barrier()
    assert (worker.all_reduce(2, "max"), worker.all_gather(2), worker.broadcast(2)) == (2, [2], 2)


def test_training_in_evaluation_mode_is_refused_instead_of_keeping_gradients_here() -> None:
    worker = Worker()
    model = worker.prepare(torch.nn.Linear(2, 1))
    worker.models._routes[0].wrapper = torch.nn.Identity()  # type: ignore[assignment]  # stands for DDP
    model.eval()
    loss = model(torch.ones(1, 2)).sum()
    with pytest.raises(ProgramError, match=r"received Linear in evaluation mode, .*call model.train\(\) first"):
        worker.backward(loss)


def test_an_evaluation_leaves_models_in_the_mode_they_were() -> None:
    worker = Worker()
    model = worker.prepare(torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Dropout()))
    model[1].eval()
    with worker.set_aside():
        model.eval()
        worker.models._routes[0].bypassed = True
    assert [module.training for module in model.modules()] == [True, True, False]
    assert worker.models.bypassed() == []
