"""What happened at gates, kept for ranks that come there again after a fault: orders given, metrics, the way on.

Pure bookkeeping. A gate that was passed is passed again without a handler; one that is open is gone on with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from workers.messages import Answer
from workers.orders import Order, Release
from workers.parcels import Failure, GateKey

__all__ = ["Given", "OpenGate", "PassedGate", "PassedGates"]

MOST = 100_000  # gates remembered where no snapshot or checkpoint says which may be forgotten


@dataclass(slots=True, kw_only=True)
class Given:
    """An order that was given to ranks which wait at a gate.

    Args:
        number: its id.
        what: its name, for errors.
        make: (order id, rank) → the order.
        asked: the ranks to which it goes, in order.
        everyone: whether those are all ranks, however many there are.
        lasting: whether it may have changed their state, so that it is given again to ranks that went back.
        once: whether it means nothing any more to ranks that went back.
        answers: rank → its answer.
        done: whether all have answered once.
    """

    number: int
    what: str
    make: Callable[[int, int], Order]
    asked: list[int]
    everyone: bool
    lasting: bool = False
    once: bool = False
    answers: dict[int, Answer] = field(default_factory=dict)
    done: bool = False
    void: bool = False  # ranks went back before all had answered it

    @property
    def failures(self) -> dict[int, Failure]:
        """Rank → what it raised, of those that answered so."""
        return {rank: answer.failure for rank, answer in self.answers.items() if answer.failure is not None}

    def regroup(self, world_size: int) -> None:
        """There are so many ranks now, and none has answered."""
        self.done = self.void = self.once
        self.answers.clear()
        self.asked[:] = range(world_size) if self.everyone else [rank for rank in self.asked if rank < world_size]


@dataclass(slots=True, kw_only=True)
class OpenGate:
    """A gate whose handlers are running.

    Args:
        key: which one.
        given: the orders given there, in order; the last one may still be waited for.
        present: whether the ranks are there; not while they are on their way back after a fault.
    """

    key: GateKey
    given: list[Given] = field(default_factory=list)
    present: bool = True

    def __str__(self) -> str:
        return str(self.key)

    def lasting(self) -> list[Given]:
        """Orders that are done and changed something."""
        return [order for order in self.given if order.lasting and order.done]

    @property
    def reached(self) -> int:
        """The last of these by its number; 0: there is none."""
        return max((order.number for order in self.lasting()), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedGate:
    """A gate that was passed.

    Args:
        iteration: of the trainer.
        given: the orders by which it changed the ranks' state.
        release: what they were told.
    """

    iteration: int
    given: list[Given]
    release: Release


class PassedGates:
    """The gates that ranks may come to again.

    Example:
        >>> passed = PassedGates()
        >>> key = GateKey(engine="trainer", event="EPOCH_COMPLETED", count=1)
        >>> passed.add(key, PassedGate(iteration=4, given=[], release=Release(gate=key, metrics={})))
        >>> passed.forget(before=5)
        >>> passed.get(key) is None
        True
    """

    def __init__(self) -> None:
        self._gates: dict[GateKey, PassedGate] = {}

    def add(self, key: GateKey, gate: PassedGate) -> None:
        """Remember a gate."""
        self._gates[key] = gate
        if len(self._gates) > MOST:
            del self._gates[next(iter(self._gates))]

    def get(self, key: GateKey) -> PassedGate | None:
        """What happened there; None if it was not passed."""
        return self._gates.get(key)

    def forget(self, before: int) -> None:
        """Nobody will come again to gates before this iteration of the trainer."""
        while self._gates:
            key = next(iter(self._gates))  # they were added in the order of iterations
            if self._gates[key].iteration >= before:
                break
            del self._gates[key]
