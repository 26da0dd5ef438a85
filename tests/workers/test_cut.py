"""A consistent cut: asked at any moment, ranks that are not in step all stop after the same iteration."""

import random
import threading

import pytest

from tests.waiting import wait_until
from workers.cut import Cut
from workers.engine import Engine


class Rank:
    """An engine in a thread that arrives at cuts and waits there."""

    def __init__(self, iterations, idle=None):
        self.arrived = []
        self.go_on = threading.Semaphore(0)
        self.done = []
        self.reach = threading.Semaphore(0)  # the steps that this rank may make: the others' pace is random
        self.cut = Cut(self._arrive, idle)
        self.engine = Engine(self._step)
        self.thread = threading.Thread(target=self.engine.run, kwargs={"max_iters": iterations, "epoch_length": 7})

    def _step(self, engine, batch):
        assert self.reach.acquire(timeout=30)
        self.done.append(engine.state.iteration)

    def _arrive(self, engine, iteration):
        assert iteration == engine.state.iteration
        self.arrived.append(iteration)
        assert self.go_on.acquire(timeout=30)


def let_run(ranks, steps):
    for rank in ranks:
        for _ in range(steps(rank)):
            rank.reach.release()


@pytest.mark.parametrize("seed", range(12))
def test_all_ranks_arrive_after_the_same_iteration(seed):
    dice, iterations = random.Random(seed), 60
    ranks = [Rank(iterations) for _ in range(dice.randint(2, 4))]
    let_run(ranks, lambda _: dice.randint(0, 20))
    for rank in ranks:
        rank.thread.start()
    targets = []
    for _ in range(2):
        target = max([rank.cut.propose(rank.engine) for rank in ranks])
        targets.append(target)
        let_run(ranks, lambda _: dice.randint(0, 8))
        for rank in dice.sample(ranks, len(ranks)):
            rank.cut.settle(target)
        let_run(ranks, lambda _: iterations)
        wait_until(lambda: all(len(rank.arrived) == len(targets) for rank in ranks), what="all ranks at the cut")
        assert all(rank.arrived == targets and len(rank.done) == target for rank in ranks)
        for rank in ranks:
            while rank.reach.acquire(blocking=False):
                pass
            rank.go_on.release()
        let_run(ranks, lambda _: dice.randint(0, 8))
    let_run(ranks, lambda _: iterations)
    for rank in ranks:
        rank.thread.join(timeout=30)
        assert rank.done == list(range(1, iterations + 1))


def started(rank, steps):
    rank.thread.start()
    for _ in range(steps):
        rank.reach.release()
    wait_until(lambda: rank.engine.announced == steps + 1, what="the rank in its next step")


def test_a_rank_starts_no_iteration_beyond_its_answer():
    rank = Rank(9)
    started(rank, 3)
    assert rank.cut.propose(rank.engine) == 4
    let_run([rank], lambda _: 9)
    wait_until(lambda: rank.engine.announced == 5, what="the rank at the boundary")
    assert rank.done == [1, 2, 3, 4]
    rank.cut.settle(6)
    wait_until(lambda: rank.arrived == [6], what="the rank at the cut")
    rank.go_on.release()
    rank.thread.join(timeout=30)
    assert rank.done == list(range(1, 10))


def test_a_cut_that_is_cancelled_lets_the_rank_go_on_and_the_next_one_counts():
    rank = Rank(9)
    started(rank, 1)
    rank.cut.propose(rank.engine)
    let_run([rank], lambda _: 1)
    wait_until(lambda: rank.engine.announced == 3, what="the rank at the boundary")
    rank.cut.cancel()
    let_run([rank], lambda _: 1)
    wait_until(lambda: rank.engine.announced == 4, what="the rank beyond the boundary")
    assert rank.arrived == []
    rank.cut.settle(rank.cut.propose(rank.engine))
    let_run([rank], lambda _: 9)
    wait_until(lambda: rank.arrived == [4], what="the rank at the second cut")
    rank.go_on.release()
    rank.thread.join(timeout=30)


def test_a_driver_in_the_same_thread_settles_while_the_rank_waits():
    arrived, turns = [], []

    def idle():
        turns.append(engine.state.iteration)
        cut.settle(2)

    cut = Cut(lambda engine, iteration: arrived.append(iteration), idle)
    engine = Engine(lambda engine, batch: engine.state.iteration == 1 and cut.propose(engine))
    engine.run(max_iters=5, epoch_length=5)
    assert (arrived, turns) == ([2], [1])
