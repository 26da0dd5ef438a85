"""Two sessions in processes of their own train together, and end where one alone ends: no Ray, words over pipes."""

import itertools
import multiprocessing
import os
import sys
import threading

import cloudpickle
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy

from orchestrator.reduce import reduce_packs
from orchestrator.rendezvous import Rendezvous
from workers.engine import Engine
from workers.events import Events
from workers.mailbox import Mailbox, Outbox
from workers.messages import Answer, Arrived, Built, Finished, Hello, Joined, SnapshotTaken
from workers.metrics import attach_metric
from workers.orders import Build, Call, Evaluate, Go, Join, Leave, Release
from workers.program import Program
from workers.rank import Membership, Place
from workers.session import Session

LIMIT = 60.0
SAMPLES = 27  # batches of 8: the last one has 3, two for rank 0 and one for rank 1


def host(rank, pipe):
    """One process: a session, and two threads that carry its words."""
    torch.set_num_threads(1)
    place = Place(node="local", host="here", address="127.0.0.1", pid=os.getpid())
    session = Session(worker_id=rank, place=place, outbox=Outbox(), mailbox=Mailbox())

    def orders():
        for number in itertools.count():
            session.mailbox.put(number, order := pipe.recv())
            if isinstance(order, Leave):
                return

    def messages():
        while not session.outbox.closed:
            for message in session.outbox.take(timeout=0.5):
                pipe.send(message)

    threads = [threading.Thread(target=orders), threading.Thread(target=messages)]
    for thread in threads:
        thread.start()
    session.run()
    for thread in threads:
        thread.join(LIMIT)


class Crew:
    """The driver's end: sends an order to all ranks, and hears one message of each."""

    def __init__(self, world_size):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch.distributed", "torch.nn.parallel", "torchmetrics"])
        self.pipes, self.processes = [], []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            self.pipes.append(ours)
            self.processes.append(context.Process(target=host, args=(rank, theirs)))

    def __enter__(self):
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_):
        self.order(Leave())
        for process in self.processes:
            process.join(LIMIT)
        assert [process.exitcode for process in self.processes] == [0] * len(self.processes)

    def order(self, *orders):
        """One order for all ranks, or one for each."""
        for pipe, order in zip(self.pipes, itertools.cycle(orders), strict=False):
            pipe.send(order)

    def hear(self, kind):
        """The next message of every rank, which is of this kind."""
        heard = []
        for pipe in self.pipes:
            assert pipe.poll(LIMIT), f"no {kind.__name__} came"
            while isinstance(message := pipe.recv(), SnapshotTaken) and kind is not SnapshotTaken:
                assert pipe.poll(LIMIT), f"no {kind.__name__} came"
            heard.append(message)
            assert type(heard[-1]) is kind, heard[-1]
        return heard


def build(worker):
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(SAMPLES, 4, generator=generator), torch.arange(SAMPLES) % 3
    model = worker.prepare(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)

    def train_step(engine, batch):
        inputs, targets = batch
        loss = torch.nn.functional.cross_entropy(model.train()(inputs), targets)
        optimizer.zero_grad()
        worker.backward(loss)
        optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def eval_step(engine, batch):
        inputs, targets = batch
        return model.eval()(inputs), targets

    trainer, evaluator = Engine(train_step), Engine(eval_step)
    attach_metric(trainer, "loss", "mean")
    attach_metric(evaluator, "accuracy", MulticlassAccuracy(3))
    data = torch.utils.data.TensorDataset(x, labels)
    return Program(
        engines={"trainer": trainer, "evaluator": evaluator},
        data={
            "trainer": worker.loader(data, global_batch_size=8, shuffle=True),
            "evaluator": worker.loader(data, global_batch_size=13),  # the last batch has one sample: one rank has none
        },
        state={"model": model, "optimizer": optimizer},
    )


def parameters(worker):
    return [parameter.tolist() for parameter in worker.program.state["model"].parameters()]


def trained(world_size, epochs=3):
    """Train, evaluate at every epoch's end; gives (metrics of every epoch, parameters of every rank)."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    members = [Membership(generation=0, rank=rank, world_size=world_size) for rank in range(world_size)]
    gates, program, seen = {"trainer": Events.EPOCH_COMPLETED}, cloudpickle.dumps(build), []
    with Rendezvous("127.0.0.1") as store, Crew(world_size) as crew:
        crew.hear(Hello)
        crew.order(*(Build(program=program, config={}, seed=5, membership=member, gates=gates) for member in members))
        empty = crew.hear(Built)[0].metrics
        store = store if world_size > 1 else None
        crew.order(*(Join(membership=member, store=store, timeout=30.0) for member in members))
        crew.hear(Joined)
        crew.order(Go(max_epochs=epochs, max_iters=None, epoch_length=None))
        for epoch in range(epochs):
            arrived = crew.hear(Arrived)
            assert len({message.gate for message in arrived}) == 1
            assert sum(message.samples for message in arrived) == SAMPLES * (epoch + 1)
            crew.order(Evaluate(order=epoch, engine="evaluator"))
            answers = [answer.value for answer in crew.hear(Answer)]
            metrics = reduce_packs([message.packs for message in arrived], empty["trainer"])
            metrics |= reduce_packs(answers, empty["evaluator"])
            seen.append(metrics)
            crew.order(Release(gate=arrived[0].gate, metrics=metrics))
        crew.hear(Finished)
        crew.order(Call(order=99, pickled=cloudpickle.dumps((parameters, (), {}))))
        return seen, [cloudpickle.loads(answer.value) for answer in crew.hear(Answer)]


def flat(nested):
    return [value for item in nested for value in flat(item)] if isinstance(nested, list) else [nested]


def test_two_ranks_end_bit_equal_and_where_one_alone_ends():
    alone, (expected,) = trained(1)
    together, (first, second) = trained(2)
    assert first == second
    assert flat(first) == pytest.approx(flat(expected), abs=1e-6)
    for ours, theirs in zip(together, alone, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
    assert together[-1]["loss"] < together[0]["loss"]
