"""Handlers that run on ranks: checked and pickled at the driver when they are registered, before any process starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from orchestrator.bus import EventBus
from orchestrator.errors import SpecError
from orchestrator.settings import pickled
from workers.events import EventExpression
from workers.parcels import RankHandler

__all__ = ["Where", "ship"]

Where = int | Sequence[int] | Literal["all", "local_rank_0"]


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
    name = str(getattr(handler, "__qualname__", None) or type(handler).__name__)
    bus.check(event, handler, args, dict(kwargs))
    return RankHandler(
        engine=bus.engine,
        event=bus.expression(event),
        name=name,
        where=_where(rank, world_size),
        pickled=pickled((handler, args, dict(kwargs)), f"orchestrator.on(rank={rank!r})"),
    )


def _where(rank: Where, world_size: int) -> int | tuple[int, ...] | Literal["all", "local_rank_0"]:
    """Check which ranks are meant."""
    if rank == "all":
        return "all"
    if rank == "local_rank_0":
        return "local_rank_0"
    if isinstance(rank, Sequence) and not isinstance(rank, str):
        return tuple(_number(one, rank, world_size) for one in rank)
    return _number(rank, rank, world_size)


def _number(one: object, given: object, world_size: int) -> int:
    if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < world_size:
        raise SpecError(
            f'orchestrator.on(rank={given!r}): expected ranks from 0 to {world_size - 1}, "all" or "local_rank_0", '
            f"received {one!r}"
        )
    return one
