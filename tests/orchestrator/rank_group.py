"""A group of real workers for tests, and what they said: wait for it, or for what they did not say."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle

from orchestrator.exchange import Lost
from orchestrator.group import RayGroup
from orchestrator.spec import ClusterSpec, WorkersSpec
from tests.waiting import wait_until
from workers.messages import Answer, Built, Hello, Message
from workers.orders import Build, Call
from workers.program import Program
from workers.rank import Membership, Place

__all__ = ["Heard", "empty", "group_of"]


def empty(worker: Any) -> Program:
    """A program that does nothing."""
    from workers.engine import Engine

    return Program(engines={"trainer": Engine(lambda engine, batch: None)}, data={}, state={})


class Heard:
    """A group, and all that was taken from it."""

    def __init__(self, group: RayGroup) -> None:
        self.group = group
        self.came: list[Any] = []
        self.places: dict[int, Place] = {}

    def take(self) -> Any:
        """The next thing, if it comes at once."""
        came = self.group.take(0.02)
        if came is not None:
            self.came.append(came)
        if isinstance(came, Hello):
            self.places[came.worker] = came.place
        return came

    def until(self, kind: type, worker: int, timeout: float = 60.0) -> Any:
        """Take until something of this kind came from this worker."""
        return self.until_true(
            lambda came: isinstance(came, kind) and came.worker == worker, f"{kind}, {worker}", timeout
        )

    def until_true(self, condition: Callable[[Any], bool], what: str, timeout: float = 60.0) -> Any:
        """Take until something came for which the condition holds."""

        def look() -> bool:
            came = self.take()
            return came is not None and condition(came)

        wait_until(look, timeout, what, interval=0)
        return self.came[-1]

    def hello(self, *workers: int) -> None:
        """Wait until these workers are up."""
        wait_until(lambda: self.take() is None and set(workers) <= self.places.keys(), 60, f"{workers} up", interval=0)

    def build(self, worker: int) -> None:
        """Have a worker build an empty program, so that it can be called."""
        membership = Membership(generation=0, rank=0, world_size=1)
        self.group.order(worker, Build(program=cloudpickle.dumps(empty), config={}, seed=0, membership=membership))
        self.until(Built, worker)

    def call(self, worker: int, number: int, function: Callable[..., Any], *args: Any) -> None:
        """Have a worker's training thread call `function(worker, *args)`; does not wait for it."""
        self.group.order(worker, Call(order=number, pickled=cloudpickle.dumps((function, args, {}))))

    def answers(self, worker: int) -> list[int]:
        """The orders that this worker has answered, as they came."""
        return [one.order for one in self.came if isinstance(one, Answer) and one.worker == worker]

    def lost(self) -> dict[int, str]:
        """Who was lost, and how."""
        return {one.worker: one.cause for one in self.came if isinstance(one, Lost)}

    def of(self, worker: int) -> list[Any]:
        """All that came of a worker."""
        return [one for one in self.came if isinstance(one, Message | Lost) and one.worker == worker]

    def signal(self, worker: int, number: int = signal.SIGKILL) -> int:
        """Send a signal to a worker's process, and give its id."""
        os.kill(self.places[worker].pid, number)
        return self.places[worker].pid


@contextlib.contextmanager
def group_of(count: int, address: str, **given: Any) -> Iterator[Heard]:
    """A group of so many workers that are up."""
    lease = {"lease": given.pop("lease")} if "lease" in given else {}
    group = RayGroup(WorkersSpec(count=count, **given), ClusterSpec(address=address), **lease)
    heard = Heard(group)
    try:
        group.start()
        heard.hello(*range(count))
        yield heard
    finally:
        left = group.stop(grace=0)
    assert left == []
