"""A rank's way back: snapshots of its state at the places where all ranks take one, and a return to one of them.

Made by the session when it joins others; a rank that trains alone has nobody who could come back to it. What a snapshot
holds is in `snapshot.py`; which one is taken up after a fault is the driver's decision.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple

import torch

from workers.boundary import at_boundary
from workers.buckets import Layout
from workers.engine import Engine
from workers.events import Events
from workers.failpoints import failpoint
from workers.pace import Pace
from workers.parcels import CUT, TRAINER, GateKey, Rewind, SnapshotLabel
from workers.program import Program
from workers.reports import Reports
from workers.snapshot import SnapshotRing
from workers.worker import Worker

__all__ = ["BEGIN", "Rewinder"]

BEGIN = GateKey(engine=TRAINER, event="BEGIN", count=0)  # of the first snapshot, at which nobody waits


class Asked(NamedTuple):
    """What a snapshot knows of the session: what the trainer was asked, and which metrics came from the driver."""

    requests: Mapping[str, bool]
    released: tuple[str, ...]


class Rewinder:
    """The snapshots of one rank.

    Args:
        worker: this rank.
        program: whose state is copied.
        every: iterations between two snapshots beside those at gates; "auto": measured; None: there are none at all.
        reports: what of the engine's metrics came from the driver.
        told: called with `label` and `own` of each snapshot.
    """

    def __init__(
        self,
        worker: Worker,
        program: Program,
        every: int | Literal["auto"] | None,
        reports: Reports,
        told: Callable[..., None],
    ) -> None:
        self._worker = worker
        self._trainer = program.engines[TRAINER]
        self._takes = every is not None
        self._pace = Pace(every, agree=lambda number: worker.all_reduce(number, "max"), settle=partial(_settle, worker))
        self._ring = SnapshotRing(worker, program, {"pace": self._pace})
        self._trainer.add_phase_handler("gate", self._pace.expression, self._between)
        self._asked: dict[SnapshotLabel, Asked] = {}
        self._reports = reports
        self._told = told
        self._at: SnapshotLabel | None = None  # where a rewind has led, until training goes on

    @property
    def held(self) -> tuple[SnapshotLabel, ...]:
        """The snapshots that are there, the newest last."""
        return self._ring.held

    def take(self, label: SnapshotLabel) -> None:
        """Copy the state, and tell the driver what would die with this rank."""
        asked = Asked(self._trainer.requests, self._reports.released(self._trainer))
        if not self._takes:
            self._asked = {label: asked}
            return
        own = self._ring.take(label)
        self._asked = {known: self._asked[known] for known in self._ring.held if known in self._asked}
        self._asked[label] = asked
        failpoint("snapshot.taken", self._worker.rank)
        self._told(label=label, own=pickle.dumps((asked, own), protocol=pickle.HIGHEST_PROTOCOL))

    def at_begin(self, at: SnapshotLabel | None) -> None:
        """Before training begins or goes on from a checkpoint: the first snapshot.

        Args:
            at: the gate to which this rank comes again, since the checkpoint was made there; None: to none.
        """
        self._trainer.requests = dict.fromkeys(self._trainer.requests, False)  # those were asked of another run
        self._pace.begin(self._trainer.state.iteration)
        self.take(at or SnapshotLabel(iteration=self._trainer.state.iteration, gate=BEGIN))
        self._at = at

    def at_gate(self, key: GateKey, *, order: int = 0) -> None:
        """On arriving at a gate, and on leaving one at which orders were carried out: a snapshot, if one can be."""
        if at_boundary(key):
            self.take(SnapshotLabel(iteration=self._trainer.state.iteration, gate=key, order=order))

    def _between(self, engine: Engine) -> None:
        """After an iteration: a snapshot if one is due, unless a gate has just brought one."""
        iteration = engine.state.iteration
        self._pace.at(iteration, partial(self._take_between, iteration))

    def _take_between(self, iteration: int) -> None:
        if not self.held or self.held[-1].iteration < iteration:
            self.take(SnapshotLabel(iteration=iteration))

    def rewind(self, rewind: Rewind) -> list[Layout | None]:
        """Take up a snapshot, which newcomers get from a donor; a collective of the donor and the newcomers.

        Args:
            rewind: what the driver decided.

        Returns:
            The layouts with which the models are wrapped anew.
        """
        rank, asked, own = self._worker.membership.rank, None, None
        if rewind.own is not None:
            asked, own = pickle.loads(rewind.own)
        if rank in rewind.newcomers:
            self._ring.receive(rewind.label, rewind.donor)
            self._asked[rewind.label] = asked or Asked(dict.fromkeys(self._trainer.requests, False), ())
        elif rank == rewind.donor:
            self._ring.give(rewind.label, rewind.newcomers)
        failpoint("rewind.received", rank)
        self._ring.restore(rewind.label, own)
        self._at = rewind.label
        failpoint("rewind.restored", rank)
        return self._ring.layouts(rewind.label)

    @property
    def announced(self) -> int:
        """The iteration which the trainer had announced where this rank will go on."""
        at_cut = self._at is not None and self._at.gate is not None and self._at.gate.event == CUT
        return self._trainer.state.iteration + at_cut

    def go_on(self, arrive: Callable[[GateKey, int], None]) -> None:
        """Have the trainer go on where the last rewind led to; nothing to do if there was none.

        Args:
            arrive: wait at a gate again, to which this rank had come by then; gets the order after which that was.
        """
        label, self._at = self._at, None
        if label is None or label.gate == BEGIN:
            return
        gate, asked = label.gate, self._asked[label]

        def then(engine: Engine) -> None:
            engine.requests = asked.requests
            self._reports.took_back(engine, asked.released)
            if gate is not None:
                arrive(gate, label.order)

        self._trainer.rewind(Events.ITERATION_COMPLETED.key if gate is None else gate.event, then)


def _settle(worker: Worker) -> None:
    """Wait for the device, so that the clock tells what a snapshot costs."""
    if worker.device.type != "cpu":
        torch.accelerator.synchronize()
