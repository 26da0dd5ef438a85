"""The ranks on Ray, without Ray: what their streams bring, and what a stream that ends or breaks means."""

import asyncio
from collections.abc import AsyncIterator, Awaitable

import pytest

from orchestrator.exchange import Lost
from orchestrator.group import RayGroup
from orchestrator.spec import ClusterSpec, WorkersSpec
from workers.messages import Joined, Message
from workers.orders import Leave

JOINED = Joined(generation=0, worker=0, rank=0, seq=0)


class Order:
    """Stands in for an actor: takes orders and forgets them."""

    class control:  # noqa: N801 - the actor's method
        remote = staticmethod(lambda number, order: None)


@pytest.fixture
def group() -> RayGroup:
    group = RayGroup(WorkersSpec(count=1), ClusterSpec())
    group._actors[0], group._numbers[0] = Order, 0
    return group


async def stream(*batches: list[Message], error: Exception | None = None) -> AsyncIterator[Awaitable[list[Message]]]:
    for batch in batches:
        yield asyncio.sleep(0, batch)
    if error is not None:
        raise error


def drained(group: RayGroup, *batches: list[Message], error: Exception | None = None) -> list[object]:
    asyncio.run(group._drain(0, stream(*batches, error=error)))
    found = []
    while (came := group.take(0)) is not None:
        found.append(came)
    return found


def test_a_stream_that_ends_before_its_rank_was_told_to_leave_is_a_lost_rank(group: RayGroup) -> None:
    assert drained(group, [JOINED]) == [JOINED, Lost(worker=0, cause="its stream ended")]


def test_a_stream_that_ends_after_its_rank_was_told_to_leave_is_no_loss(group: RayGroup) -> None:
    group.order(0, Leave())
    assert drained(group, [JOINED]) == [JOINED]


def test_a_stream_that_breaks_is_a_lost_rank_with_the_line_that_tells_why(group: RayGroup) -> None:
    text = "\x1b[36mray::RankActor.events()\x1b[39m (pid=7)\n  File actor.py\nRuntimeError: dictionary changed size\n"
    assert drained(group, error=ValueError(text)) == [
        Lost(worker=0, cause="ValueError: RuntimeError: dictionary changed size")
    ]


def test_what_ray_guesses_of_a_dead_process_is_left_out(group: RayGroup) -> None:
    text = "The actor died.\n\tpid: 7\nThe actor is dead. Exit detail: End of file. Some common causes include: (1) the"
    (lost,) = drained(group, error=OSError(text))
    assert lost == Lost(worker=0, cause="OSError: The actor is dead. Exit detail: End of file.")
