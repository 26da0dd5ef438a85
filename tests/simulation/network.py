"""The process group of one generation: collectives that complete when all members are in, and break when one goes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.rank import Rank
    from tests.simulation.world import World

__all__ = ["Call", "LostPeerError", "Network"]

NOTICED = 0.7  # chance that a member notices by itself that another one is gone
HALF_DONE = 0.3  # chance that a collective fails for a member although all had come


class LostPeerError(Exception):
    """What a collective raises when a peer is gone."""


@dataclass(slots=True, eq=False)
class Call:
    """One collective.

    Args:
        tag: what it is; all members must mean the same.
        members: ranks that take part.
    """

    tag: tuple[Any, ...]
    members: frozenset[int]
    values: dict[int, Any] = field(default_factory=dict)
    waiting: dict[int, Rank] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)

    @property
    def whole(self) -> bool:
        return len(self.values) == len(self.members)

    def ready(self, rank: int) -> bool:
        return self.whole or rank in self.failed


class Network:
    """The links of one generation.

    Args:
        world: the simulation.
        generation: its number.
        world_size: members.
    """

    def __init__(self, world: World, generation: int, world_size: int) -> None:
        self._world = world
        self.generation = generation
        self._everyone = frozenset(range(world_size))
        self._counts: dict[int, int] = {}
        self._calls: dict[object, Call] = {}
        self._gone: set[int] = set()
        self._cut: set[int] = set()  # members that have cut their own links

    def enter(self, rank: Rank, tag: tuple[Any, ...], value: Any, members: Collection[int] | None = None) -> Call:
        """A member comes to a collective; it waits until `ready`."""
        number = rank.membership.rank
        if members is None:
            count = self._counts[number] = self._counts.get(number, -1) + 1
            key: object = count
        else:
            key = tag
        call = self._calls.setdefault(key, Call(tag, self._everyone if members is None else frozenset(members)))
        if call.tag != tag:
            return self._cross(call, rank, tag)
        assert number not in call.values, f"rank {number} came twice to {tag}"
        call.values[number] = value
        call.waiting[number] = rank
        if number in self._cut or ((self._gone & call.members) and self._world.chance(NOTICED)):
            call.failed.add(number)
        for member, waiting in list(call.waiting.items()):
            if call.ready(member):
                waiting.poke()
        return call

    def _cross(self, call: Call, rank: Rank, tag: tuple[Any, ...]) -> Call:
        """Two members mean different things: so they may in a generation of which they know that it is over."""
        if not any(one.aborted > self.generation for one in (rank, *call.waiting.values())):
            self._world.violate(f"collectives crossed: rank {rank.membership.rank} is in {tag}, others in {call.tag}")
        self._fail(call)
        crossed = Call(tag, call.members, waiting={rank.membership.rank: rank})
        self._fail(crossed)
        return crossed

    def _fail(self, call: Call) -> None:
        call.failed.update(call.members)
        for waiting in list(call.waiting.values()):
            waiting.poke()

    def give_up(self, call: Call) -> None:
        """It has taken too long for whoever still waits."""
        for member, waiting in list(call.waiting.items()):
            if not call.ready(member):
                call.failed.add(member)
                waiting.poke()

    def leave(self, call: Call, rank: int) -> None:
        """A member goes on from a collective, or was unwound."""
        call.waiting.pop(rank, None)

    def lose(self, rank: int, *, own: bool = False) -> None:
        """A member is gone, or has cut its links: it is out at once, others notice in their own time, if at all."""
        self._gone.add(rank)
        if own:
            self._cut.add(rank)
        for call in list(self._calls.values()):
            if rank not in call.members:
                continue
            for member, waiting in list(call.waiting.items()):
                if call.whole:
                    fails = member != rank and self._world.chance(HALF_DONE)
                else:
                    fails = member == rank or self._world.chance(NOTICED)
                if fails:
                    call.failed.add(member)
                    waiting.poke()
