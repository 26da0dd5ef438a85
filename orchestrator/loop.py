"""The driver's loop: take the next thing that came, hand it to whoever handles its kind.

It lives on the thread of the user. Whoever waits for something pumps, also inside a handler that the loop called, so
waiting nests. The first fault is given a moment to be joined by its cause, then ends the run with one error.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.errors import RankfireError
from orchestrator.exchange import Group, Incoming, Lost
from orchestrator.killed import Killed
from orchestrator.verdict import Facts, verdict
from workers.messages import Built, Fault, Message, Pulse, Saved

__all__ = ["Loop"]

SETTLE = 0.3  # seconds in which other ranks may report the same fault, or its cause
SETTLE_BUILDING = 5.0  # the same while ranks build: nothing ties them together, so they come to it at their own pace
Handlers = Mapping[type[Any], Callable[[Any], None]]


class Loop:
    """Takes what comes from the workers.

    Args:
        group: the workers.
        ended: told of the error that ends the run, once, before it is raised.
    """

    def __init__(self, group: Group, ended: Callable[[RankfireError, Facts], None]) -> None:
        self.group = group
        self.facts = Facts()
        self.killed = Killed(self.facts)
        self.suspects: set[str] = set()  # nodes on which nothing should be started
        self.pulses: dict[int, Pulse] = {}  # rank → its last one
        self.heard_at: dict[int, float] = {}  # worker → when its last pulse came
        self.unheard: deque[Saved] = deque()  # came while the run was being judged; see Saver.salvage
        self.on_tick: list[Callable[[], None]] = []
        self.heard: Callable[[Pulse], None] = lambda pulse: None
        self.on_pulse: Callable[[Mapping[int, Pulse]], None] | None = None
        self.fresh: Callable[[Message], bool] = lambda message: True  # whether it is of this generation
        self.recover: Callable[[], bool] = lambda: False  # makes the ranks whole again after a fault, if it can
        self._ended = ended
        self._verdict: RankfireError | None = None
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            Pulse: self._pulse,
            Fault: self._fault,
            Lost: self._lost,
        }

    def handle(self, handlers: Handlers) -> None:
        """Say who handles which kind of message."""
        self._handlers.update(handlers)

    def pump(self, timeout: float = 1.0) -> None:
        """Handle the next thing that comes, waiting at most `timeout` seconds for it.

        Raises:
            RankfireError: what ended the run; again and again, so that no handler can swallow it.
        """
        self.check()
        self.tick()
        came = self.group.take(timeout)
        if came is not None and (not isinstance(came, Message) or self.fresh(came)):
            self._handlers[type(came)](came)

    def check(self) -> None:
        """Raise what ended the run, if it has ended."""
        if self._verdict is not None:
            raise self._verdict

    def tick(self) -> None:
        """Look at the clock: whoever does something at times does it now."""
        for function in self.on_tick:
            function()

    def end(self, error: RankfireError) -> RankfireError:
        """End the run with an error; returns it, to be raised."""
        if self._verdict is None:
            self._verdict = error
            self._ended(error, self.facts)
        return self._verdict

    def _pulse(self, message: Pulse) -> None:
        facts = self.facts
        facts.phases[message.worker] = f"{message.phase}, iteration {message.iteration}"
        self.heard_at[message.worker] = time.monotonic()
        self.killed.hear(message)
        self.heard(message)
        if message.worker in facts.ranks:
            self.pulses[facts.ranks[message.worker]] = message
            if self.on_pulse is not None:
                self.on_pulse(self.pulses)

    def _fault(self, message: Fault) -> None:
        self.facts.faults.append(message)
        self._conclude()

    def _lost(self, came: Lost) -> None:
        self.facts.lost[came.worker] = came.cause
        self._conclude()

    def _conclude(self) -> None:
        """Recover, if that is possible. Else hear what the others have to say for a moment, then judge."""
        if self.recover():
            return
        began = time.monotonic()
        while self.facts.silent(self.group.size):
            left = began + (SETTLE_BUILDING if self.facts.still_building() else SETTLE) - time.monotonic()
            came: Incoming | None = self.group.take(left) if left > 0 else None
            if came is None and (left <= 0 or not self.group.needs_store):
                break
            self._note(came)
        raise self.end(verdict(self.facts))

    def _note(self, came: Incoming | None) -> None:
        """Take in what a worker says while the run is ending; what asks for an act comes too late."""
        if isinstance(came, Fault):
            self.facts.faults.append(came)
        elif isinstance(came, Lost):
            self.facts.lost[came.worker] = came.cause
        elif isinstance(came, Built):
            self.facts.building.discard(came.worker)
        elif isinstance(came, Pulse):
            self._pulse(came)
        elif isinstance(came, Saved):
            self.unheard.append(came)
