"""Handlers that run on ranks: checked and pickled at the driver when they are registered, before any process starts.

What `rank=` may be is checked here for every call that has it. Called by the orchestrator's face.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.bus import EventBus
from orchestrator.errors import SpecError, explain
from orchestrator.settings import pickled
from workers.events import EventExpression
from workers.parcels import RankHandler, Where

__all__ = ["check_ranks", "ship", "ship_itself"]


def ship(
    bus: EventBus,
    event: EventExpression | str,
    handler: Callable[..., Any],
    call: tuple[tuple[Any, ...], Mapping[str, Any]],
    *,
    rank: Where,
    world_size: int,
) -> RankHandler:
    """Make a handler ready to travel.

    Args:
        bus: of the engine whose event it is.
        event: what it waits for, on the rank.
        handler: called there as `handler(engine, *args, **kwargs)`, or without the engine.
        call: its args and kwargs.
        rank: which ranks run it.
        world_size: how many ranks there are.

    Raises:
        SpecError: it can't be pickled, or `rank` names no rank.
        ValueError: it can't be called that way.
    """
    args, kwargs = call
    bus.check(event, handler, args, dict(kwargs))
    return RankHandler(
        engine=bus.engine,
        event=bus.expression(event),
        where=check_ranks(rank, world_size, "orchestrator.on", words=("all", "local_rank_0")),
        pickled=pickled((handler, args, dict(kwargs)), f"orchestrator.on(rank={rank!r})"),
    )


def ship_itself(
    bus: EventBus, handler: Any, call: tuple[tuple[Any, ...], Mapping[str, Any]], *, rank: Where, world_size: int
) -> RankHandler:
    """Make ready to travel what attaches itself to an engine there: `handler.attach(engine, *args, **kwargs)`.

    Args:
        bus: of the engine.
        handler: the object.
        call: its args and kwargs.
        rank: which ranks attach it.
        world_size: how many ranks there are.

    Raises:
        SpecError: it can't be pickled, or `rank` names no rank.
    """
    args, kwargs = call
    name = f"orchestrator.send({type(handler).__name__})"
    return RankHandler(
        engine=bus.engine,
        event=None,
        where=check_ranks(rank, world_size, "orchestrator.send", words=("all", "local_rank_0")),
        pickled=pickled((handler, args, dict(kwargs)), name),
    )


def check_ranks(rank: Where, world_size: int, call: str, *, words: Sequence[str]) -> Where:
    """See that the `rank=` of a call names ranks that there are.

    Args:
        rank: what the user gave: a number, several, or a word.
        world_size: how many ranks there are.
        call: what was called, for the error.
        words: the words that it understands.

    Returns:
        The same, several as a tuple.

    Raises:
        SpecError: it names none.

    Example:
        >>> check_ranks([0, 2], 4, "orchestrator.call", words=("all",))
        (0, 2)
    """
    if isinstance(rank, str) and rank in words:
        return rank
    several = isinstance(rank, Sequence) and not isinstance(rank, str | bytes)
    given: tuple[Any, ...] = tuple(rank) if several else (rank,)  # type: ignore[arg-type]  # a sequence, then
    for one in given:
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < world_size:
            ranks = f"ranks from 0 to {world_size - 1}" if world_size > 1 else "rank 0"
            raise SpecError(
                explain(
                    f"{call}(rank={rank!r})",
                    expected=f"{ranks}, or {' or '.join(map(repr, words))}",
                    received=f"{one!r} ({type(one).__name__})",
                    mend="write for example rank=0 or rank='all'",
                )
            )
    return given if several else rank
