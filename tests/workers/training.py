"""A program for tests of snapshots: every step of it draws random numbers and changes all there is."""

import random
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from workers.engine import Engine
from workers.events import Events
from workers.metrics import attach_metric
from workers.parcels import SnapshotLabel
from workers.program import Program
from workers.rank import Membership
from workers.rng import capture_rng
from workers.snapshot import SnapshotRing
from workers.worker import Worker

CPU = torch.device("cpu")
ALONE = Membership(generation=0, rank=0, world_size=1)
LAST = 13

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
    "OneCycle": lambda optimizer: schedulers.OneCycleLR(optimizer, 0.1, total_steps=30),
    "warm restarts": lambda optimizer: schedulers.CosineAnnealingWarmRestarts(optimizer, T_0=3, T_mult=2),
    "Sequential": lambda optimizer: schedulers.SequentialLR(
        optimizer,
        [schedulers.LinearLR(optimizer, 0.1, total_iters=4), schedulers.StepLR(optimizer, 2, 0.5)],
        milestones=[4],
    ),
    "Plateau": lambda optimizer: schedulers.ReduceLROnPlateau(optimizer, factor=0.5, patience=1),
    "Lambda": lambda optimizer: schedulers.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
}


class AccidentError(Exception):
    """What ends a run in a test."""


class Training:
    """One rank's program and its ring; `fail = (iteration, moment)` ends a run in the middle of a step.

    Args:
        make_optimizer: of the model.
        make_scheduler: of the optimizer.
        scaled: whether the loss is scaled.
        membership: the rank's place; it draws from a stream of its own.
        data: made of the worker; default: a map-style data set, shared out.
        options: for `worker.prepare`.
        adds_up: iterations whose gradients are added up before a step.
        more: entries of the state.
    """

    def __init__(
        self,
        make_optimizer=OPTIMIZERS["Adam"],
        make_scheduler=None,
        *,
        scaled=False,
        membership=ALONE,
        data=None,
        options=None,
        adds_up=1,
        **more,
    ):
        torch.manual_seed(5)
        self.worker = Worker(device=CPU, seed=3, membership=membership)
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 1))
        self.net = self.worker.prepare(net, **(options or {}))
        self.optimizer = make_optimizer(self.net)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=3, enabled=scaled)
        state = {"net": self.net, "optimizer": self.optimizer, "scaler": self.scaler, **more}
        if make_scheduler is not None:
            state["scheduler"] = make_scheduler(self.optimizer)
        self.losses, self.owns, self.fail, self.adds_up = {}, {}, (0, ""), adds_up
        self.trainer = Engine(self._step)
        attach_metric(self.trainer, "loss", "mean")
        self.data = data(self.worker) if data else self._shared_out()
        self.program = Program(engines={"trainer": self.trainer}, data={"trainer": self.data}, state=state)
        self.ring = SnapshotRing(self.worker, self.program)

    def _shared_out(self):
        return self.worker.loader(torch.randn(40, 4), global_batch_size=8, shuffle=True)

    def _step(self, engine, batch):
        moment = self.fail[1] if self.fail[0] == engine.state.iteration else ""
        noisy = batch + random.random() + np.random.rand()
        closure = partial(self._loss, noisy, moment, engine.state.iteration)
        if isinstance(self.optimizer, torch.optim.LBFGS):
            loss = self.optimizer.step(closure)
        else:
            loss = closure()
            if engine.state.iteration % self.adds_up == 0:
                self.scaler.unscale_(self.optimizer)
                if moment == "unscaled":
                    raise AccidentError
                self.scaler.step(self.optimizer)
                self.scaler.update()
        if moment == "stepped":
            raise AccidentError
        scheduler = self.program.state.get("scheduler")
        if scheduler is not None:
            scheduler.step(*[loss.item()] * isinstance(scheduler, schedulers.ReduceLROnPlateau))
        self.losses[engine.state.iteration] = loss.item()
        return loss.item()

    def _loss(self, batch, moment, iteration):
        if (iteration - 1) % self.adds_up == 0:
            self.optimizer.zero_grad()
        loss = self.net(batch).square().mean()
        if moment == "forward":
            raise AccidentError
        if moment == "backward":
            loss.register_hook(_raise)
        with nullcontext() if iteration % self.adds_up == 0 else self.worker.no_sync(self.net):
            self.worker.backward(self.scaler.scale(loss))
        return loss

    def run(self, iterations=LAST):
        """Train up to an iteration."""
        self.trainer.run(self.data, max_iters=iterations, epoch_length=5)

    def run_taking(self, *iterations):
        """Train to the end, and take snapshots on the way; `owns` has what dies with this rank."""
        if 0 in iterations:
            self.owns[0] = self.ring.take(at(0))
        later = Events.ITERATION_COMPLETED(once=[LAST + 1, *filter(None, iterations)])
        handle = self.trainer.add_phase_handler("gate", later, self._take)
        self.run()
        handle.remove()

    def _take(self, engine):
        iteration = engine.state.iteration
        self.owns[iteration] = self.ring.take(at(iteration))

    def told(self, since=0):
        """All that training changes, copied, to be compared by `equal`; of the losses those after an iteration."""
        engine = self.trainer.state_dict()
        del engine["counters"]  # of how often it was resumed
        return copied(
            [
                {iteration: loss for iteration, loss in self.losses.items() if iteration > since},
                [entry.state_dict() for entry in self.program.state.values()],
                engine,
                capture_rng(CPU),
                self.worker.samples,
            ]
        )


class Odd:
    """An entry of the state that keeps what it is given, and gives what it keeps."""

    def __init__(self, size=3):
        self.state, self.broken = {"average": torch.zeros(size), "names": ["a"], "none": None}, False

    def state_dict(self):
        if self.broken:
            raise AccidentError
        return self.state

    def load_state_dict(self, state):
        self.state = state


def at(iteration):
    """The label of a snapshot between two iterations."""
    return SnapshotLabel(iteration=iteration)


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
    """A nested state that nothing changes any more."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list | tuple) else value


def _raise(gradient):
    raise AccidentError
