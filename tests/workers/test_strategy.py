"""The stable handle: it is the user's module, it trains through a wrapper, and outlives every generation."""

import copy
import pickle

import pytest
import torch
from torch import nn

from tests.processes import joined, ranks
from workers.rank import Membership
from workers.strategy import DataParallel, no_sync

CPU = torch.device("cpu")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, *, scale=1.0):
        self.calls += 1
        return self.layer(x) * scale

    def weight_sum(self):
        return self.layer.weight.sum().item()


class FakeWrapper:
    """Stands where DDP would, and tells when it was called."""

    def __init__(self, module):
        self.module = module
        self.calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.module(*args, **kwargs)


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def models():
    return DataParallel(CPU)


@pytest.fixture
def handle(models, module):
    return models.prepare(module)


@pytest.fixture
def wrapper(models, module, handle):
    models._routes[0].wrapper = FakeWrapper(module)
    return models._routes[0].wrapper


def test_a_handle_is_a_module_of_the_users_class(handle, module):
    assert isinstance(handle, Net)
    assert type(handle).__name__ == "Net"
    assert repr(handle) == repr(module)
    assert handle.weight_sum() == module.weight_sum()


def test_parameters_and_state_are_shared_without_a_prefix(handle, module):
    assert [name for name, _ in handle.named_parameters()] == ["layer.weight", "layer.bias"]
    assert all(a is b for a, b in zip(handle.parameters(), module.parameters(), strict=True))
    assert list(handle.state_dict()) == ["calls", "layer.weight", "layer.bias"]


def test_what_is_set_on_one_is_set_on_the_other(handle, module):
    handle.eval()
    handle.extra = nn.Linear(1, 1)
    assert not module.training
    assert module.extra is handle.extra


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_a_plain_module(handle, module, wrapper, copied):
    plain = copied(handle)
    assert type(plain) is Net
    assert torch.equal(plain.layer.weight, module.layer.weight)
    plain(torch.ones(1, 2))
    assert wrapper.calls == 0


def test_a_deep_copy_keeps_what_belongs_together(handle, module):
    pair = copy.deepcopy([handle, module, module.layer.weight])
    assert pair[0] is pair[1]
    assert pair[0].layer.weight is pair[2] is not module.layer.weight


def test_training_goes_through_the_wrapper(handle, wrapper):
    out = handle(torch.ones(1, 2), scale=0.0)
    assert (wrapper.calls, out.item(), handle.calls.item()) == (1, 0.0, 1)


def test_evaluation_and_no_grad_bypass_the_wrapper(handle, wrapper):
    with torch.no_grad():
        handle(torch.ones(1, 2))
    handle.eval()(torch.ones(1, 2))
    assert (wrapper.calls, handle.calls.item()) == (0, 2)


@pytest.mark.parametrize("wrapped", [True, False])
def test_hooks_run_once(handle, module, request, wrapped):
    if wrapped:
        request.getfixturevalue("wrapper")
    ran = []
    handle.register_forward_hook(lambda *_: ran.append("handle"))
    module.register_forward_pre_hook(lambda *_: ran.append("module"))
    handle(torch.ones(1, 2))
    assert ran == ["module", "handle"]


def test_without_wrappers_the_plain_module_is_called(models, handle, wrapper):
    models.unwrap()
    handle(torch.ones(1, 2))
    assert (wrapper.calls, handle.calls.item()) == (0, 1)


def test_what_is_no_module_is_refused(models):
    with pytest.raises(TypeError, match=r"^worker\.prepare: expected a torch\.nn\.Module, received str; pass"):
        models.prepare("model")


def trained_over_generations(membership, store):
    torch.manual_seed(membership.rank)  # the first wrap makes the ranks equal
    models = DataParallel(CPU)
    net, frozen = models.prepare(Net()), models.prepare(nn.Linear(1, 1).requires_grad_(False))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    begin = None
    for generation in range(3):
        member = Membership(generation=generation, rank=membership.rank, world_size=membership.world_size)
        with joined(member, store):
            models.wrap(first=generation == 0)
            assert models._routes[1].wrapper is None
            begin = copy.deepcopy(net) if begin is None else begin
            x = torch.tensor([[1.0 + membership.rank, generation]])
            with no_sync(net):
                net(x).sum().backward()
            alone = net.layer.weight.grad.clone()
            net(x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            models.unwrap()
    frozen(torch.ones(1, 1))
    return begin.layer.weight.detach(), net.layer.weight.detach(), alone, net.calls.item()


def test_a_handle_trains_on_over_generations_as_one_process_would():
    with ranks(2) as world:
        first, second = world.run(trained_over_generations)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert [first[2].tolist(), second[2].tolist()] == [[[1.0, 2.0]], [[2.0, 2.0]]]
    assert first[3] == 6
    weight, momentum = first[0].clone(), torch.zeros(1, 2)
    for generation in range(3):
        momentum = 0.9 * momentum + 2 * torch.tensor([[1.5, generation]])
        weight -= 0.1 * momentum
    assert torch.allclose(first[1], weight)
