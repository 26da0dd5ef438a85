"""The driver's loop: one thing at a time to whoever handles it, and one error that nobody can swallow."""

import pytest

from orchestrator.errors import RankfireError, SystemFailure, TrainingError, WorkerLostError
from orchestrator.loop import Loop
from orchestrator.verdict import Facts
from tests.orchestrator.fake_group import FakeGroup
from workers.messages import Finished, Pulse


def loop_of(group: FakeGroup) -> tuple[Loop, list[RankfireError]]:
    ended: list[RankfireError] = []
    loop = Loop(group, lambda error, facts: ended.append(error))
    loop.facts = Facts(ranks={worker: worker for worker in range(group.size)})
    return loop, ended


def pulse(group: FakeGroup, worker: int, iteration: int = 3) -> None:
    group.send(
        Pulse,
        worker,
        phase="training",
        iteration=iteration,
        epoch=1,
        moves=0,
        idle=0.0,
        busy=0.0,
        samples=12,
        drops=0,
        output={},
    )


def test_a_turn_hands_one_message_to_the_handler_of_its_kind() -> None:
    group = FakeGroup(2)
    loop, seen = loop_of(group)[0], []
    loop.handle({Finished: seen.append})
    group.finish(0)
    group.finish(1)
    loop.pump()
    assert [message.worker for message in seen] == [0]


def test_a_turn_in_which_nothing_comes_is_over() -> None:
    assert loop_of(FakeGroup(1))[0].pump(timeout=0.0) is None


def test_pulses_tell_what_ranks_do() -> None:
    group = FakeGroup(2)
    loop, seen = loop_of(group)[0], []
    loop.on_pulse = lambda pulses: seen.append(dict(pulses))
    pulse(group, 1, iteration=7)
    loop.pump()
    assert loop.facts.phases == {1: "training, iteration 7"}
    assert [{rank: one.iteration for rank, one in pulses.items()} for pulses in seen] == [{1: 7}]


def test_pulses_of_workers_without_a_rank_are_heard_but_not_shown() -> None:
    group = FakeGroup(2)
    loop, _ = loop_of(group)
    loop.facts.ranks = {}
    pulse(group, 1)
    loop.pump()
    assert (loop.pulses, loop.facts.phases) == ({}, {1: "training, iteration 3"})


def test_a_fault_waits_a_moment_for_its_cause() -> None:
    group = FakeGroup(3)
    loop, ended = loop_of(group)
    group.fail(0, "communication", "gloo: closed")
    pulse(group, 2, iteration=9)
    group.lose(1)
    with pytest.raises(WorkerLostError) as caught:
        loop.pump()
    assert ended == [caught.value]
    assert loop.facts.phases[2] == "training, iteration 9"


def test_when_everybody_has_spoken_nobody_is_waited_for() -> None:
    group = FakeGroup(2)
    loop, _ = loop_of(group)
    for worker in (0, 1):
        group.fail(worker)
    group.finish(0)
    with pytest.raises(TrainingError, match="ranks 0-1 raised"):
        loop.pump()
    assert len(group.inbox) == 1


def test_on_separate_processes_the_moment_is_waited_for_in_full() -> None:
    group = FakeGroup(2)
    group.needs_store = True
    waits: list[float] = []
    take = group.take

    def late(timeout: float) -> object:
        waits.append(timeout)
        if len(waits) == 3:
            group.fail(1, text="the cause")
        return take(timeout)

    group.take = late  # type: ignore[method-assign, assignment]
    group.lose(0)
    with pytest.raises(TrainingError, match="rank 1 raised ValueError: the cause"):
        loop_of(group)[0].pump()
    assert max(waits[1:]) <= 0.3


def test_what_ended_the_run_is_raised_at_every_turn_and_told_once() -> None:
    group = FakeGroup(1)
    loop, ended = loop_of(group)
    group.lose(0)
    for _ in range(3):
        with pytest.raises(WorkerLostError):
            loop.pump()
    assert len(ended) == 1


def test_the_first_end_counts() -> None:
    loop, ended = loop_of(FakeGroup(1))
    first, second = SystemFailure("first"), SystemFailure("second")
    assert (loop.end(first), loop.end(second), ended) == (first, first, [first])
