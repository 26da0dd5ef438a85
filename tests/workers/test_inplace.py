"""What a restore puts back in place: any optimizer, scheduler and scaler, any module; training goes on bit by bit."""

import pytest
import torch
from torch import nn

from tests.workers.training import CPU, LAST, OPTIMIZERS, SCHEDULERS, AccidentError, Training, at, equal
from workers.rng import capture_rng, restore_rng


@pytest.fixture(autouse=True)
def generators_and_threads_stay():
    state, threads = capture_rng(CPU), torch.get_num_threads()
    torch.set_num_threads(1)  # several only get in each other's way with tensors as small as these
    yield
    torch.set_num_threads(threads)
    restore_rng(state, CPU)


def goes_on_bit_by_bit(training, since, *, moment=""):
    """Train to the end, and again from a snapshot that was taken on the way, twice; with an accident in between."""
    training.run_taking(since)
    undisturbed = training.told()
    for _ in range(2):
        training.ring.restore(at(since))
        if moment:
            training.fail = since + 2, moment
            with pytest.raises(AccidentError):
                training.run()
            training.fail = 0, ""
            training.ring.restore(at(since))
        training.run()
        assert equal(training.told(), undisturbed)


@pytest.mark.parametrize("since", [0, 4])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_bit_by_bit(name, since):
    goes_on_bit_by_bit(Training(OPTIMIZERS[name]), since)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_goes_on_bit_by_bit(name, optimizer):
    goes_on_bit_by_bit(Training(OPTIMIZERS[optimizer], SCHEDULERS[name]), 4)


@pytest.mark.parametrize("moment", ["forward", "backward", "unscaled", "stepped"])
@pytest.mark.parametrize("scaled", [False, True])
def test_wherever_a_step_was_left_it_is_done_again(moment, scaled):
    goes_on_bit_by_bit(Training(OPTIMIZERS["SGD"], SCHEDULERS["OneCycle"], scaled=scaled), 4, moment=moment)
    goes_on_bit_by_bit(Training(scaled=scaled), 0, moment=moment)


@pytest.mark.parametrize("since", [2, 4, 5])
@pytest.mark.parametrize("moment", ["", "backward"])
def test_gradients_that_are_being_added_up_come_back(since, moment):
    goes_on_bit_by_bit(Training(scaled=True, adds_up=3), since, moment=moment)


def test_gradients_that_a_step_has_used_take_no_room():
    training = Training()
    training.run(3)
    training.ring.take(at(3))
    tensors = [*training.net.parameters(), *training.net.buffers()]
    tensors += [value for state in training.optimizer.state.values() for value in state.values()]
    assert len(training.ring._slots[-1].copies.laid) == len(tensors)
    training.ring.restore(at(3))
    assert all(parameter.grad is None for parameter in training.net.parameters())


def test_a_snapshot_disturbs_nothing():
    observed, alone = Training(), Training()
    rng = capture_rng(CPU)
    observed.run_taking(*range(LAST))
    told = observed.told()
    restore_rng(rng, CPU)
    alone.run()
    assert equal(alone.told(), told)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_tensors_stay_where_they_are(name):
    training = Training(OPTIMIZERS[name])

    def tensors():
        states = [value for state in training.optimizer.state.values() for value in state.values()]
        return [*training.net.parameters(), *training.net.buffers(), *states]

    training.run(4)
    training.ring.take(at(4))
    before = {id(tensor): tensor.data_ptr() for tensor in tensors() if isinstance(tensor, torch.Tensor)}
    training.fail = 5, "backward"
    with pytest.raises(AccidentError):
        training.run()
    training.ring.restore(at(4))
    assert {id(tensor): tensor.data_ptr() for tensor in tensors() if isinstance(tensor, torch.Tensor)} == before
    assert all(parameter.grad is None for parameter in training.net.parameters())


class Counting(nn.Module):
    """A module with all kinds of state: a parameter, buffers that come and go, one that is not saved, and extras."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("step", torch.zeros(()), persistent=False)
        self.register_buffer("cache", None)
        self.register_buffer("window", torch.zeros(1))
        self.calls = 0

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


class Bare(Counting):
    """The same without extras: nothing but tensors."""

    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state


@pytest.mark.parametrize("kind", [Counting, Bare])
def test_all_that_a_module_has_comes_back(kind):
    module = kind()
    training = Training(module=module)
    training.ring.take(at(0))
    step = module.step
    with torch.no_grad():
        module.weight += 1
        module.step += 1
        module.cache = torch.ones(3)
        module.window = torch.ones(2)
        module.calls = 5
    training.ring.take(at(1))
    training.ring.restore(at(0))
    assert module.weight.tolist() == [1, 1]
    assert module.step is step
    assert module.step == 0
    assert module.cache is None
    assert module.window.tolist() == [0]
    assert module.calls == (0 if kind is Counting else 5)


def test_modes_and_frozen_parameters_come_back():
    training = Training()
    training.net[1].eval()
    training.net[0].requires_grad_(False)
    training.ring.take(at(0))
    training.net.train()
    training.net.requires_grad_(True)
    training.ring.restore(at(0))
    assert [layer.training for layer in training.net] == [True, False, True, True, True]
    assert [p.requires_grad for p in training.net.parameters()] == [False, False, True, True, True, True]


def test_a_group_that_was_added_since_is_gone():
    training = Training(lambda net: torch.optim.SGD(net[0].parameters(), 0.1, momentum=0.9))
    training.run(2)
    training.ring.take(at(2))
    training.optimizer.add_param_group({"params": list(training.net[4].parameters())})
    training.run(4)
    training.ring.restore(at(2))
    assert len(training.optimizer.param_groups) == 1
    assert set(training.optimizer.state) == set(training.net[0].parameters())


def test_tied_weights_stay_tied():
    training = Training()
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    second.weight = first.weight
    training.program.state["first"], training.program.state["second"] = first, second
    training.ring.take(at(0))
    held = training.ring._slots[-1].copies
    assert [place.shape for place in held.laid].count((2, 2)) == 1
    with torch.no_grad():
        first.weight.zero_()
    training.ring.restore(at(0))
    assert second.weight is first.weight
    assert first.weight.count_nonzero() == 4


def test_an_optimizer_with_a_way_of_its_own_is_given_its_state():
    class Lookahead(torch.optim.SGD):
        slow = 0

        def state_dict(self):
            return {**super().state_dict(), "slow": self.slow}

        def load_state_dict(self, state):
            self.slow = state["slow"]
            super().load_state_dict({name: value for name, value in state.items() if name != "slow"})

    training = Training(lambda net: Lookahead(net.parameters(), 0.1, momentum=0.9))
    training.optimizer.slow = 3
    goes_on_bit_by_bit(training, 4)
    training.optimizer.slow = 4
    training.ring.restore(at(4))
    assert training.optimizer.slow == 3
