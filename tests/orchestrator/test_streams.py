"""Streams without Ray: what they bring, what one that ends or breaks means, how it is taken up again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import streams as module
from orchestrator.exchange import Inbox, Lost
from orchestrator.streams import Batch, Line, Streams
from tests.waiting import wait_until
from workers.mailbox import Outbox
from workers.messages import Hello, Joined, Message
from workers.rank import Place


class BrokenError(Exception):
    """The connection broke; the worker may live."""


def joined(seq: int = 0) -> Joined:
    return Joined(generation=0, worker=0, rank=0, seq=seq)


async def stream(*batches: Batch, error: BaseException | None = None) -> AsyncIterator[Awaitable[Batch]]:
    for batch in batches:
        yield asyncio.sleep(0, batch)
    if error is not None:
        raise error


def numbered(*numbers: int) -> Batch:
    return [(number, joined(number)) for number in numbers]


def read(*opened: AsyncIterator[Any], leaving: bool = False, **given: Any) -> tuple[list[Any], Line, Streams]:
    """Read a worker's streams, one after the other; what came of it."""
    inbox, left, asked = Inbox(), iter(opened), []

    def open_next(epoch: int, heard: int) -> AsyncIterator[Any]:
        asked.append((epoch, heard))
        return next(left)

    line = Line(worker=0, open=open_next, beat=asked.append, leaving=leaving, **given)
    streams = Streams(inbox, beat=60.0, may_return=(BrokenError,))
    asyncio.run(streams.read(line))
    came = []
    while (one := inbox.take(0)) is not None:
        came.append(one.seq if isinstance(one, Message) else one)
    return [came, asked], line, streams


def test_a_stream_that_ends_before_its_rank_was_told_to_leave_is_a_lost_rank() -> None:
    (came, _), _, streams = read(stream(numbered(1)))
    assert came == [1, Lost(worker=0, cause="its stream ended")]
    assert streams.ended == {0}


def test_a_stream_that_ends_after_its_rank_was_told_to_leave_is_no_loss() -> None:
    (came, _), _, _ = read(stream(numbered(1)), leaving=True)
    assert came == [1]


def test_a_stream_that_breaks_is_a_lost_rank_with_the_line_that_tells_why() -> None:
    text = "\x1b[36mray::RankActor.events()\x1b[39m (pid=7)\n  File actor.py\nRuntimeError: dictionary changed size\n"
    (came, asked), _, _ = read(stream(error=ValueError(text)))
    assert came == [Lost(worker=0, cause="ValueError: RuntimeError: dictionary changed size")]
    assert asked == [(0, 0)]  # nobody tried again


def test_what_ray_guesses_of_a_dead_process_is_left_out() -> None:
    text = "The actor died.\n\tpid: 7\nThe actor is dead. Exit detail: End of file. Some common causes include: (1) the"
    (came, _), _, _ = read(stream(error=OSError(text)))
    assert came == [Lost(worker=0, cause="OSError: The actor is dead. Exit detail: End of file.")]


def test_a_connection_that_broke_is_followed_by_the_next_stream_where_hearing_ended() -> None:
    (came, asked), _, _ = read(
        stream(numbered(1, 2), error=BrokenError("reset")), stream(numbered(2, 3), numbered(4)), leaving=True
    )
    assert came == [1, 2, 3, 4]
    assert asked == [(0, 0), (1, 2)]


def test_each_break_may_be_followed_by_another_stream_as_long_as_something_is_heard() -> None:
    broken = [stream(numbered(number), error=BrokenError("reset")) for number in (1, 2, 3)]
    (came, asked), _, _ = read(*broken, stream(error=BrokenError("gone")))
    assert came == [1, 2, 3, Lost(worker=0, cause="BrokenError: gone")]
    assert asked == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_a_broken_stream_whose_worker_turns_out_dead_is_lost_with_the_cause_of_death() -> None:
    (came, _), _, _ = read(stream(numbered(1), error=BrokenError("reset")), stream(error=OSError("killed")))
    assert came == [1, Lost(worker=0, cause="OSError: killed")]


def test_a_broken_stream_that_stays_silent_is_lost_with_the_cause_of_the_break(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent() -> AsyncIterator[Awaitable[Batch]]:
        await asyncio.Event().wait()
        yield asyncio.sleep(0, [])

    monkeypatch.setattr(module, "RETURN", 0.01)
    (came, _), _, _ = read(stream(numbered(1), error=BrokenError("reset")), silent())
    assert came == [1, Lost(worker=0, cause="BrokenError: reset")]


def test_pulses_have_no_number_and_always_come() -> None:
    (came, _), line, _ = read(stream([(1, joined(1)), (0, joined(70))], [(0, joined(71))]), leaving=True)
    assert came == [1, 70, 71]
    assert line.heard == 1


def test_a_worker_that_never_lived_is_not_lost_if_it_is_started_again() -> None:
    seen: list[BaseException] = []
    (came, _), _, streams = read(stream(error=OSError("never ran")), again=lambda error: not seen.append(error))
    assert (came, len(seen), streams.ended) == ([], 1, set())


def test_one_that_has_said_something_has_lived() -> None:
    (came, _), _, _ = read(stream(numbered(1), error=OSError("gone")), again=lambda error: True)
    assert came == [1, Lost(worker=0, cause="OSError: gone")]


def test_a_worker_is_told_now_and_then_what_was_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNHEARD", 3)
    (_, asked), _, _ = read(stream(*(numbered(number) for number in range(1, 8))), leaving=True)
    assert asked == [(0, 0), 3, 6]


@given(st.lists(st.sampled_from(["put", "item", "break", "acknowledge"]), max_size=60))
def test_however_often_a_stream_breaks_nothing_is_lost_or_doubled(steps: list[str]) -> None:
    """A real outbox at the other end; a break loses what was on its way."""
    outbox, put = Outbox(), [0]
    left = iter([*steps, "break"])

    async def opened(epoch: int, heard: int) -> AsyncIterator[Awaitable[Batch]]:
        yield asyncio.sleep(0, [(0, joined(0))])  # as every stream begins: with a pulse
        for step in left:
            if step == "put":
                put[0] += 1
                outbox.put(joined(put[0]))
            elif step == "item":
                batch = outbox.after(heard, timeout=0)
                heard = batch[-1][0] if batch else heard
                yield asyncio.sleep(0, batch)
            elif step == "acknowledge":
                outbox.acknowledge(line.heard)
            else:
                outbox.after(heard, timeout=0)  # this was on its way
                raise BrokenError("reset")
        yield asyncio.sleep(0, outbox.after(heard, timeout=0))

    inbox = Inbox()
    line = Line(worker=0, open=opened, beat=outbox.acknowledge, leaving=True)
    asyncio.run(Streams(inbox, beat=60.0, may_return=(BrokenError,)).read(line))
    came = []
    while (one := inbox.take(0)) is not None:
        came.append(one.seq)
    assert [seq for seq in came if seq] == list(range(1, put[0] + 1))


# ---------------------------------------------------------------- the thread
@pytest.fixture
def running() -> Iterator[tuple[Streams, Inbox]]:
    inbox = Inbox()
    streams = Streams(inbox, beat=0.01)
    streams.start()
    yield streams, inbox
    streams.stop()


def endless(*batches: Batch) -> Callable[[int, int], AsyncIterator[Awaitable[Batch]]]:
    async def opened(epoch: int, heard: int) -> AsyncIterator[Awaitable[Batch]]:
        for batch in batches:
            yield asyncio.sleep(0, batch)
        await asyncio.Event().wait()

    return opened


def test_workers_are_given_beats_until_they_are_lost(running: tuple[Streams, Inbox]) -> None:
    streams, inbox = running
    living: list[int] = []
    lost: list[int] = []
    streams.follow(Line(worker=0, open=endless(numbered(1, 2)), beat=living.append))
    streams.follow(Line(worker=1, open=lambda epoch, heard: stream(error=OSError("gone")), beat=lost.append))
    wait_until(lambda: 1 in streams.ended, what="the loss")
    beats = len(lost)
    wait_until(lambda: living.count(2) >= 5, what="five beats that tell what was heard")
    assert len(lost) == beats
    assert [inbox.take(1) for _ in range(3)][-1] in (Lost(worker=1, cause="OSError: gone"), joined(2))


def test_a_worker_that_was_dropped_is_read_no_more_and_not_lost(running: tuple[Streams, Inbox]) -> None:
    streams, inbox = running
    beats: list[int] = []
    line = Line(worker=0, open=endless(numbered(1)), beat=beats.append)
    streams.follow(line)
    assert inbox.take(10) == joined(1)
    streams.drop(0)
    wait_until(lambda: line.task is not None and line.task.done(), what="the end of its reader")
    given = len(beats)
    streams.follow(Line(worker=1, open=endless(numbered(1)), beat=(others := []).append))
    wait_until(lambda: len(others) > 3, what="beats for another one")
    assert (len(beats), streams.ended) == (given, {0})
    assert inbox.take(10) == joined(1)
    assert inbox.take(0) is None


def test_where_a_worker_lives_is_known_from_its_hello(running: tuple[Streams, Inbox]) -> None:
    streams, inbox = running
    place = Place(node="n", host="h", address="127.0.0.1", pid=7)
    hello = Hello(generation=0, worker=3, rank=3, seq=0, place=place)
    streams.follow(Line(worker=3, open=endless([(1, hello)]), beat=lambda heard: None))
    assert inbox.take(10) == hello
    assert streams.places == {3: place}
