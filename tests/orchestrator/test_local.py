"""Driver and rank on one stack: who has a turn when, and how an error of either gets past the other."""

import os
from collections.abc import Callable

import cloudpickle
import pytest

from orchestrator.exchange import Incoming, Interrupt, LeaseLost
from orchestrator.local import LocalGroup
from workers import Engine, Events, Program, Worker
from workers.messages import Arrived, Built, Fault, Finished, Hello, Joined, Observed
from workers.orders import Build, Go, Join, Release
from workers.rank import Membership

ALONE = Membership(generation=0, rank=0, world_size=1)


class Driver:
    """Takes what comes, one thing a turn, and does what the test says with it."""

    def __init__(self, react: Callable[[Incoming], None] | None = None) -> None:
        self.group = LocalGroup(turn=self.turn)
        self.seen: list[Incoming] = []
        self.react = react or (lambda came: None)

    def turn(self) -> None:
        came = self.group.take(0.0)
        if came is not None:
            self.seen.append(came)
            self.react(came)

    def kinds(self) -> list[type]:
        return [type(came) for came in self.seen]

    def train(self, iterations: int = 3, **build: object) -> None:
        """From hello to the end of training."""

        def program(worker: Worker) -> Program:
            return Program(
                engines={"trainer": Engine(lambda engine, batch: batch)}, data={"trainer": range(iterations)}
            )

        self.group.start()
        pickled = cloudpickle.dumps(program)
        self.group.order(0, Build(program=pickled, config={}, seed=0, membership=ALONE, **build))  # type: ignore[arg-type]
        self.group.order(0, Join(membership=ALONE, store=None, timeout=1.0))
        for _ in range(3):
            self.turn()
        self.group.order(0, Go(max_epochs=1, max_iters=None, epoch_length=None))
        for _ in range(10):
            self.turn()


def test_a_session_does_its_next_order_when_there_is_nothing_else_to_hear() -> None:
    driver = Driver()
    driver.train()
    assert driver.kinds() == [Hello, Built, Joined, Finished]
    assert driver.group.take(1.0) is None


def test_the_rank_is_this_process() -> None:
    driver = Driver()
    driver.train()
    hello = driver.seen[0]
    assert isinstance(hello, Hello)
    assert (hello.place.pid, driver.group.size, driver.group.needs_store) == (os.getpid(), 1, False)
    assert (driver.group.address(), driver.group.shortage()) == ("127.0.0.1", None)


def test_the_driver_has_its_turn_while_the_rank_waits_at_a_gate() -> None:
    def release(came: Incoming) -> None:
        if isinstance(came, Arrived):
            driver.group.order(0, Release(gate=came.gate, metrics={}, then="terminate"))

    driver = Driver(release)
    driver.train(gates={"trainer": Events.ITERATION_COMPLETED(every=2)})
    assert driver.kinds() == [Hello, Built, Joined, Arrived, Finished]
    finished = driver.seen[-1]
    assert isinstance(finished, Finished)
    assert finished.iteration == 2


def test_the_driver_sees_what_is_watched_before_the_next_iteration() -> None:
    at: list[tuple[int, int]] = []

    def note(came: Incoming) -> None:
        if isinstance(came, Observed):
            at.append((came.iteration, driver.group.session.trainer.state.iteration))

    driver = Driver(note)
    driver.train(watches={"trainer": Events.ITERATION_COMPLETED})
    assert at == [(1, 1), (2, 2), (3, 3)]


def test_an_interrupt_is_heard_between_two_iterations() -> None:
    at: list[int] = []

    def press(came: Incoming) -> None:
        if isinstance(came, Observed):
            driver.group.interrupt()
        elif isinstance(came, Interrupt):
            at.append(driver.group.session.trainer.state.iteration)

    driver = Driver(press)
    driver.train(watches={"trainer": Events.ITERATION_COMPLETED(once=1)})
    assert at == [1]


def test_what_the_driver_raises_unwinds_the_rank_and_is_no_fault_of_its() -> None:
    cause = KeyError("cause")

    def refuse(came: Incoming) -> None:
        if isinstance(came, Observed):
            raise ValueError("the driver's own") from cause

    driver = Driver(refuse)
    with pytest.raises(ValueError, match="the driver's own") as caught:
        driver.train(watches={"trainer": Events.ITERATION_COMPLETED(once=2)})
    assert caught.value.__cause__ is cause
    assert Fault not in driver.kinds()
    assert driver.group.session.trainer.state.iteration == 2


def test_what_the_program_raises_is_a_fault() -> None:
    driver = Driver()
    driver.group.start()
    driver.group.order(0, Build(program="no.such.module:build", config={}, seed=0, membership=ALONE))
    driver.turn()
    driver.turn()
    assert driver.kinds() == [Hello, Fault]


def test_a_group_that_was_never_started_can_be_stopped() -> None:
    assert LocalGroup(turn=lambda: None).stop(grace=0.0) == []


def test_there_is_one_worker() -> None:
    with pytest.raises(AssertionError, match="there is no worker 1 in this process"):
        LocalGroup(turn=lambda: None).order(1, Go(max_epochs=1, max_iters=None, epoch_length=None))


def test_what_the_look_at_the_clock_raises_is_not_taken_for_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def look() -> None:
        raise LookupError("the clock")

    monkeypatch.setattr("orchestrator.local.TICK", -1.0)
    driver = Driver()
    driver.group._tick = look
    with pytest.raises(LookupError, match="the clock"):
        driver.train()
    assert Fault not in driver.kinds()
    assert driver.group.stop(grace=0.0) == []


def test_what_another_thread_tells_is_heard_between_two_iterations() -> None:
    def note(came: Incoming) -> None:
        if isinstance(came, Observed):
            driver.group.tell(LeaseLost(text="gone"))

    driver = Driver(note)
    driver.train(watches={"trainer": Events.ITERATION_COMPLETED(once=2)})
    assert driver.kinds()[-3:] == [Observed, LeaseLost, Finished]


def test_the_only_worker_can_be_neither_doubled_nor_killed() -> None:
    group = Driver().group
    with pytest.raises(AssertionError, match="worker 1 can't be added"):
        group.add(1)
    with pytest.raises(AssertionError, match="worker 0 can't be killed"):
        group.kill(0)
    assert group.stacks([0]) == {0: "it lives in the driver's own process"}
    assert group.draining() == {}
