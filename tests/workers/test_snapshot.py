"""Snapshots of one rank: whatever happened since, a restore puts everything back, and training goes on bit by bit."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from workers.engine import Engine
from workers.events import Events
from workers.metrics import attach_metric
from workers.parcels import GateKey, SnapshotLabel
from workers.program import Program
from workers.rng import capture_rng, restore_rng
from workers.snapshot import SnapshotRing, taken_at
from workers.worker import Worker

CPU = torch.device("cpu")
LAST = 9

OPTIMIZERS = {
    "SGD": lambda net: torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, nesterov=True),
    "Adam": lambda net: torch.optim.Adam(net.parameters(), 0.01, amsgrad=True),
    "AdamW": lambda net: torch.optim.AdamW(
        [
            {"params": [p for p in net.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in net.parameters() if p.dim() < 2], "lr": torch.tensor(0.02)},
        ],
        torch.tensor(0.01),
        fused=True,
    ),
    "RMSprop": lambda net: torch.optim.RMSprop(net.parameters(), 0.01, momentum=0.5, centered=True),
    "Adagrad": lambda net: torch.optim.Adagrad(net.parameters(), 0.05, lr_decay=0.01),
    "NAdam": lambda net: torch.optim.NAdam(net.parameters(), 0.01),
    "Rprop": lambda net: torch.optim.Rprop(net.parameters(), 0.01),
    "Adafactor": lambda net: torch.optim.Adafactor(net.parameters(), 0.01),
    "LBFGS": lambda net: torch.optim.LBFGS(net.parameters(), 0.1, max_iter=3, history_size=4),
}
SCHEDULERS = {
    "OneCycle": lambda optimizer: schedulers.OneCycleLR(optimizer, 0.1, total_steps=3 * LAST),
    "warm restarts": lambda optimizer: schedulers.CosineAnnealingWarmRestarts(optimizer, T_0=3, T_mult=2),
    "Sequential": lambda optimizer: schedulers.SequentialLR(
        optimizer,
        [schedulers.LinearLR(optimizer, 0.1, total_iters=4), schedulers.StepLR(optimizer, 2, 0.5)],
        milestones=[4],
    ),
    "Plateau": lambda optimizer: schedulers.ReduceLROnPlateau(optimizer, factor=0.5, patience=1),
    "Lambda": lambda optimizer: schedulers.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
}


@pytest.fixture(autouse=True)
def generators_stay():
    state = capture_rng(CPU)
    yield
    restore_rng(state, CPU)


class AccidentError(Exception):
    """What ends a run in a test."""


class Training:
    """A program whose every step draws random numbers and changes all there is; `fail` ends one in its middle."""

    def __init__(self, make_optimizer=OPTIMIZERS["Adam"], make_scheduler=None, *, scaled=False, **more):
        torch.manual_seed(5)
        self.worker = Worker(device=CPU, seed=3)
        self.net = self.worker.prepare(
            nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 1))
        )
        self.optimizer = make_optimizer(self.net)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=3, enabled=scaled)
        state = {"net": self.net, "optimizer": self.optimizer, "scaler": self.scaler, **more}
        if make_scheduler is not None:
            state["scheduler"] = make_scheduler(self.optimizer)
        self.losses, self.fail = [], (0, "")
        self.trainer = Engine(self._step)
        attach_metric(self.trainer, "loss", "mean")
        self.data = self.worker.loader(torch.randn(40, 4), global_batch_size=8, shuffle=True)
        self.program = Program(engines={"trainer": self.trainer}, data={"trainer": self.data}, state=state)
        self.ring = SnapshotRing(self.worker, self.program)

    def _step(self, engine, batch):
        moment = self.fail[1] if self.fail[0] == engine.state.iteration else ""
        noisy = batch + random.random() + np.random.rand()

        def closure():
            self.optimizer.zero_grad()
            loss = self.net(noisy).square().mean()
            if moment == "forward":
                raise AccidentError
            if moment == "backward":
                loss.register_hook(_raise)
            self.scaler.scale(loss).backward()
            return loss

        if isinstance(self.optimizer, torch.optim.LBFGS):
            loss = self.optimizer.step(closure)
        else:
            loss = closure()
            self.scaler.unscale_(self.optimizer)
            if moment == "unscaled":
                raise AccidentError
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if moment == "stepped":
            raise AccidentError
        scheduler = self.program.state.get("scheduler")
        if isinstance(scheduler, schedulers.ReduceLROnPlateau):
            scheduler.step(loss.item())
        elif scheduler is not None:
            scheduler.step()
        self.losses.append(loss.item())
        return loss.item()

    def run(self, iterations=LAST):
        self.losses.clear()
        self.trainer.run(self.data, max_iters=iterations)

    def told(self):
        """All that training changes, to be compared by `equal`."""
        return [
            [*self.losses],
            *(entry.state_dict() for entry in self.program.state.values()),
            self.trainer.state_dict(),
            capture_rng(CPU),
            self.worker.samples,
        ]


def _raise(gradient):
    raise AccidentError


def equal(one, other):
    """Whether two nested states are the same, bit by bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def copied(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list | tuple) else value


def at(iteration):
    return SnapshotLabel(iteration=iteration)


def goes_on_bit_by_bit(training, since, *, moment=""):
    """Take a snapshot, train to the end, and again after a restore, twice; with an accident in between."""
    if since:
        training.run(since)
    training.ring.take(at(since))
    training.run()
    undisturbed = copied(training.told())
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


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_tensors_stay_where_they_are(name):
    training = Training(OPTIMIZERS[name])
    training.run(4)
    training.ring.take(at(4))
    states = [state for state in training.optimizer.state.values()]
    tensors = [*training.net.parameters(), *training.net.buffers()]
    tensors += [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
    before = [tensor.data_ptr() for tensor in tensors]
    training.fail = 5, "backward"
    with pytest.raises(AccidentError):
        training.run()
    training.ring.restore(at(4))
    assert [tensor.data_ptr() for tensor in tensors] == before
    assert all(parameter.grad is None for parameter in training.net.parameters())


def test_a_snapshot_is_not_changed_by_what_it_was_restored_to():
    training = Training(OPTIMIZERS["AdamW"], SCHEDULERS["Sequential"])
    training.run(4)
    training.ring.take(at(4))
    slot = training.ring._slots[-1]
    memory, skeletons = slot.copies.memory.clone(), dict(slot.copies.skeletons)
    training.ring.restore(at(4))
    training.run()
    assert torch.equal(slot.copies.memory, memory)
    assert slot.copies.skeletons == skeletons


def test_a_ring_holds_the_last_two():
    training = Training()
    ring = training.ring
    assert ring.held == ()
    for iteration in (1, 2, 3):
        training.run(iteration)
        ring.take(at(iteration))
    assert ring.held == (at(2), at(3))
    ring.restore(at(2))
    assert ring.held == (at(2),)
    assert training.trainer.state.iteration == 2


def test_the_label_tells_a_gate_and_what_was_done_there():
    training = Training()
    gate = GateKey(engine="trainer", event="EPOCH_COMPLETED", count=1)
    plain, arrived = at(5), SnapshotLabel(iteration=5, gate=gate)
    called = SnapshotLabel(iteration=5, gate=gate, order=7)
    for label in (plain, arrived, called):
        training.ring.take(label)
    assert training.ring.held == (arrived, called)


def test_taken_again_under_its_label_a_snapshot_is_replaced():
    training = Training()
    training.ring.take(at(0))
    training.ring.take(at(1))
    with torch.no_grad():
        training.net[0].weight.fill_(7)
    training.ring.take(at(1))
    assert training.ring.held == (at(0), at(1))
    with torch.no_grad():
        training.net[0].weight.fill_(8)
    training.ring.restore(at(1))
    assert training.net[0].weight.eq(7).all()


def test_the_memory_of_the_oldest_is_used_again():
    training = Training()
    addresses = []
    for iteration in range(1, 6):
        training.run(iteration)
        training.ring.take(at(iteration))
        addresses.append(training.ring._slots[-1].copies.memory.data_ptr())
    assert addresses[:3] == addresses[2:] or addresses[0::2] == [addresses[0]] * 3
    size = training.ring._slots[0].copies.memory.numel()
    tensors = [*training.net.parameters(), *training.net.buffers()]
    tensors += [value for state in training.optimizer.state.values() for value in state.values()]
    assert size < sum(tensor.nbytes for tensor in tensors) + 64 * len(tensors)


def test_what_a_snapshot_could_not_be_made_of_is_not_held():
    training = Training(odd=Odd())
    training.ring.take(at(1))
    training.ring.take(at(2))
    training.program.state["odd"].broken = True
    with pytest.raises(AccidentError):
        training.ring.take(at(3))
    assert training.ring.held == (at(1), at(2))


class Odd:
    """An entry of the state that keeps what it is given."""

    def __init__(self):
        self.state, self.broken = {"average": torch.zeros(3), "names": ["a"], "none": None}, False

    def state_dict(self):
        if self.broken:
            raise AccidentError
        return self.state

    def load_state_dict(self, state):
        self.state = state


def test_an_entry_that_keeps_what_it_is_given_is_given_its_own():
    odd = Odd()
    training = Training(odd=odd)
    training.ring.take(at(0))
    for _ in range(2):
        odd.state["average"] += 1
        odd.state["names"].append("b")
        training.ring.restore(at(0))
        assert equal(odd.state, {"average": torch.zeros(3), "names": ["a"], "none": None})


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


def test_metrics_and_handlers_of_engines_come_back():
    training = Training()
    odd = Odd()
    training.trainer.attach("odd", odd)
    training.trainer.state.metrics["validation/accuracy"] = 0.5
    training.run(3)
    training.ring.take(at(3))
    seen, metrics = training.trainer.attached["loss"].state_dict(), dict(training.trainer.state.metrics)
    odd.state["names"].append("b")
    training.run(7)
    assert training.trainer.state.metrics.keys() == {"validation/accuracy", "loss"}
    training.ring.restore(at(3))
    assert equal(training.trainer.attached["loss"].state_dict(), seen)
    assert training.trainer.state.metrics == metrics == {"validation/accuracy": 0.5}
    assert training.trainer.state.metrics["validation/accuracy"] is metrics["validation/accuracy"]
    assert odd.state["names"] == ["a"]


def test_an_engine_goes_on_from_a_gate_without_firing_it_again():
    training = Training()
    fired = []
    label = SnapshotLabel(iteration=5, gate=GateKey(engine="trainer", event="EPOCH_COMPLETED", count=1))
    training.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: fired.append(training.trainer.state.epoch))
    training.trainer.add_phase_handler("gate", Events.EPOCH_COMPLETED(once=1), lambda: training.ring.take(label))
    training.fail = 8, "forward"
    with pytest.raises(AccidentError):
        training.trainer.run(training.data, max_epochs=2)
    training.fail = 0, ""
    training.ring.restore(label)
    training.trainer.run(training.data, max_epochs=2)
    assert fired == [1, 2]
    assert training.trainer.state.iteration == 10


def test_what_goes_along_comes_back():
    class Pace:
        every = 8

        def state_dict(self):
            return {"every": self.every}

        def load_state_dict(self, state):
            self.every = state["every"]

    training, pace = Training(), Pace()
    ring = SnapshotRing(training.worker, training.program, {"pace": pace})
    ring.take(at(0))
    pace.every = 100
    ring.restore(at(0))
    assert pace.every == 8


@pytest.mark.parametrize(
    ("key", "taken"),
    [
        (GateKey(engine="trainer", event="EPOCH_COMPLETED", count=1), True),
        (GateKey(engine="trainer", event="ITERATION_COMPLETED", count=1), True),
        (GateKey(engine="trainer", event="CUT", count=1), True),
        (GateKey(engine="trainer", event="ITERATION_STARTED", count=1), False),
        (GateKey(engine="trainer", event="BACKWARD_STARTED", count=1), False),
        (GateKey(engine="evaluator", event="EPOCH_COMPLETED", count=1, visit=3), False),
    ],
)
def test_snapshots_are_taken_between_two_iterations_of_the_trainer(key, taken):
    assert taken_at(key) is taken


def test_own_is_small():
    assert len(Training(OPTIMIZERS["AdamW"], partial(SCHEDULERS["OneCycle"])).ring.take(at(0))) < 20_000
