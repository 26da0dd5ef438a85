"""The stable handle: it is the user's module, it trains through a wrapper, and outlives every generation."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from tests.processes import joined, ranks
from workers.errors import ProgramError
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

    require_backward_grad_sync = True

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


# ---------------------------------------------------------------- options
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return x + torch.tanh(self.layer(x))


class Counted(Block):
    ran = 0

    def forward(self, x):
        self.ran += 1
        return super().forward(x)


class Tower(nn.Module):
    def __init__(self, kind=Block):
        super().__init__()
        self.blocks = nn.ModuleList(kind() for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


OPTIONS = {
    "plain": {},
    "bf16 gradients": {"compression": "bf16"},
    "a hook of the user's": {"compression": allreduce_hook},
    "static graph": {"static_graph": True},
    "small buckets": {"bucket_cap_mb": 0.0001, "gradient_as_bucket_view": True},
    "unused parameters": {"find_unused_parameters": True},
    "activation checkpointing": {"activation_checkpointing": [Block]},
    "compiled": {"compile": {"backend": "eager"}},
}


def trained_with(membership, store, names):
    """Parameters after two generations of accumulated steps with each set of options."""
    found = {}
    for number, name in enumerate(names):
        torch.manual_seed(1)
        models = DataParallel(CPU, alone=False)
        net = models.prepare(Tower(), **OPTIONS[name])
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        for generation in range(2):
            member = Membership(generation=2 * number + generation, rank=membership.rank, world_size=2)
            with joined(member, store):
                models.wrap(first=generation == 0)
                for step in range(3):
                    x = torch.full((2, 4), 0.1 * (1 + step + membership.rank))
                    with no_sync(net):
                        net(x).square().sum().backward()
                    net(x + 1).square().sum().backward()
                    optimizer.step()
                    optimizer.zero_grad()
                models.unwrap()
        found[name] = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
    return found


def test_options_change_how_it_is_done_and_not_what_comes_of_it():
    with ranks(2) as world:
        first, second = world.run(trained_with, list(OPTIONS))
    for name, found in first.items():
        assert torch.equal(found, second[name]), name
        close = 1e-2 if name == "bf16 gradients" else 1e-6
        assert torch.allclose(found, first["plain"], atol=close), name
    assert not torch.equal(first["bf16 gradients"], first["plain"])


def test_parts_are_computed_again_in_the_backward_pass_alone(models):
    net = models.prepare(Tower(Counted), activation_checkpointing=[Block])
    assert list(net.state_dict()) == list(Tower().state_dict())
    net(torch.ones(1, 4)).sum().backward()
    with torch.no_grad():
        net(torch.ones(1, 4))
    assert [block.ran for block in net.blocks] == [3, 3, 3]
    assert copy.deepcopy(net).blocks[0].forward.forward.__self__ is not net.blocks[0]


def test_a_compiled_model_keeps_its_names(models):
    calls = []

    def backend(graph, inputs):
        calls.append(len(inputs))
        return graph.forward

    net = models.prepare(Tower(), compile={"backend": backend})
    net(torch.ones(1, 4)).sum().backward()
    assert len(calls) == 1
    assert list(net.state_dict()) == list(Tower().state_dict())


def test_a_model_that_is_not_spread_is_this_ranks_own(models):
    own, shared = models.prepare(Tower(), strategy="none"), models.prepare(Tower())
    assert models.unprepared(own) is None
    assert not models.hold(own.parameters())
    assert not models.equal(own)
    assert models.hold(shared.parameters())
    assert models.trained == [models.modules()[1]]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"strategy": "tp"}, "worker.prepare: strategy: expected 'ddp', 'fsdp' or 'none', received 'tp'; leave it out"),
        (
            {"strategy": "none", "static_graph": True},
            "worker.prepare(strategy='none'): expected no options, received st",
        ),
        ({"strategy": "fsdp", "static_graph": True}, "worker.prepare(strategy='fsdp'): expected options among shard_e"),
        ({"strategy": "fsdp", "compile": True}, "worker.prepare(strategy='fsdp'): compile: expected none, since"),
        ({"strategy": "fsdp", "offload": True}, "worker.prepare(strategy='fsdp'): offload: expected an accelerator"),
        ({"compression": "int8"}, "worker.prepare: compression: expected 'bf16', 'fp16' or a communication hook, rece"),
        (
            {"activation_checkpointing": [nn.LSTM]},
            "worker.prepare: activation_checkpointing: expected classes of parts",
        ),
        ({"sync_batchnorm": True}, "worker.prepare: sync_batchnorm: expected ranks on accelerators, received ranks on"),
    ],
)
def test_options_that_can_not_be_are_refused(options, text):
    with pytest.raises(ProgramError) as error:
        DataParallel(CPU, alone=False).prepare(Tower(), **options)
    assert str(error.value).startswith(text)
