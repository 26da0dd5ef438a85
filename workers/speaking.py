"""A rank's voice: its place in the run, what it is doing, and messages to the driver that carry both.

The lowest layer of a session; `serving.py`, `surviving.py` and `session.py` are built on it, in this order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from workers.engine import Engine
from workers.mailbox import Mailbox, Outbox
from workers.memory import kernel_kills
from workers.messages import Message, Pulse
from workers.parcels import TRAINER, Writing
from workers.program import Program
from workers.rank import Membership, Place
from workers.reports import Reports
from workers.worker import Worker

__all__ = ["Speaking"]


class Speaking:
    """One rank, as far as it speaks. `Session` is the one to use.

    Args:
        worker_id: id of this worker, unique in the run; its rank may change, this does not.
        place: where it runs.
        outbox: where its messages go.
        mailbox: where its orders come from.
    """

    def __init__(self, *, worker_id: int, place: Place, outbox: Outbox, mailbox: Mailbox) -> None:
        self.worker_id = worker_id
        self.place = place
        self.outbox = outbox
        self.mailbox = mailbox
        self.membership = Membership(generation=0, rank=worker_id, world_size=1)
        self.phase = "starting"
        self._sequence = itertools.count()
        self._reports = Reports()
        self._worker: Worker | None = None

    def send(self, message: type[Message], /, **fields: Any) -> None:
        """Stamp a message and put it into the outbox."""
        self.outbox.put(message(**self._stamp(), **fields))

    def pulse(self) -> Pulse:
        """What this rank is doing right now."""
        progress = self._reports.progress(self._engine(), self._worker, self._engines())
        return Pulse(
            **self._stamp(),
            phase=self.phase,
            drops=self.outbox.drops,
            kills=kernel_kills(),
            writing=self._writing(),
            **progress,
        )

    @property
    def worker(self) -> Worker:
        """This rank's worker; only after `Build`."""
        assert self._worker is not None, "an order came before Build"
        return self._worker

    @property
    def program(self) -> Program:
        """This rank's program; only after `Build`."""
        assert self.worker.program is not None, "an order came before build() returned"
        return self.worker.program

    @property
    def trainer(self) -> Engine:
        """The engine that trains."""
        return self.program.engines[TRAINER]

    def _engines(self) -> Iterable[Engine]:
        """All engines, once they are built; from any thread."""
        program = None if self._worker is None else self._worker.program
        return () if program is None else program.engines.values()

    def _engine(self) -> Engine | None:
        """The trainer, once it is built."""
        return self.trainer if self._worker is not None and self._worker.program is not None else None

    def _writing(self) -> Writing | None:
        """How far this rank is with its share of a checkpoint; `serving.py` knows."""
        return None

    def _note(self, phase: str) -> str:
        """Set the phase that pulses tell; returns the one before."""
        before, self.phase = self.phase, phase
        self._reports.moved(self._engine())
        return before

    def _stamp(self) -> dict[str, Any]:
        """What every message carries."""
        return {
            "generation": self.membership.generation,
            "worker": self.worker_id,
            "rank": self.membership.rank,
            "seq": next(self._sequence),
        }
