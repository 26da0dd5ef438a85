"""What a rank tells of its engines: metric states and numbers at a gate, progress in a pulse. Called by the session.

At a gate the rank waits anyway, so numbers are fetched from its device; what is told in passing takes only those that
are on the CPU. Numbers that came back reduced from the driver are not sent again; an attached metric travels as its
state.
"""

from __future__ import annotations

import contextlib
import numbers
import time
from collections.abc import Iterable, Mapping
from typing import Any

from workers.engine import Engine
from workers.errors import ProgramError
from workers.metrics.attach import AttachedMetric
from workers.metrics.pack import pack_numbers
from workers.metrics.running import AttachedAverage
from workers.parcels import Number, Pack
from workers.worker import Worker

__all__ = ["Reports"]


class Reports:
    """The reports of one rank."""

    def __init__(self) -> None:
        self._released: dict[str, float] = {}
        self._moves = 0  # from one thing to the next
        self._within = 0  # the iteration in which they were counted
        self._place = (0, 0)  # iteration and moves when it was looked last
        self._since = time.monotonic()  # when that was first so

    def take_back(self, engine: Engine, metrics: Mapping[str, float]) -> None:
        """The driver's reduced metrics become the engine's."""
        engine.state.metrics.update(metrics)
        self._released.update(metrics)

    def released(self, engine: Engine) -> tuple[str, ...]:
        """Names of the numbers in the engine's metrics that came back from the driver, and are not sent again."""
        metrics = engine.state.metrics
        return tuple(name for name, value in self._released.items() if metrics.get(name) is value)

    def took_back(self, engine: Engine, names: Iterable[str]) -> None:
        """After a rewind: these of the engine's metrics had come back from the driver by then."""
        metrics = engine.state.metrics
        self._released = {name: metrics[name] for name in names if name in metrics}

    def of(self, engine: Engine, worker: Worker, *, on_cpu: bool = False) -> dict[str, Any]:
        """What the driver learns at a gate or a watched event: the fields of `Arrived` and `Observed`.

        Args:
            engine: that fired.
            worker: of this rank.
            on_cpu: leave out numbers on other devices, which could only be read by waiting for the device: for events
                that are reported in passing. Attached metrics are in it all the same.
        """
        state = engine.state
        return {
            "epoch": state.epoch,
            "iteration": state.iteration,
            "epoch_length": state.epoch_length,
            "samples": worker.samples,
            "packs": self.packs(engine, on_cpu=on_cpu),
            "output": pack_numbers(state.output, count=worker.batch_size, on_cpu=on_cpu),
        }

    def packs(self, engine: Engine, *, on_cpu: bool = False) -> dict[str, Pack]:
        """Metrics by name: attached ones by their states, others in `state.metrics` as numbers of this rank.

        Raises:
            ProgramError: a number is too large to travel; names it.
        """
        packs: dict[str, Pack] = {}
        for name, value in engine.state.metrics.items():
            returned = name in self._released and value is self._released[name]
            if name not in engine.attached and not returned:
                packed = pack_numbers({name: value}, on_cpu=on_cpu)
                if not packed and isinstance(value, numbers.Real):
                    raise ProgramError(
                        f"state.metrics[{name!r}]: expected a number that a float can hold, received one of type "
                        f"{type(value).__name__} that is too large; scale it down, or keep it elsewhere"
                    )
                packs.update(packed)
        for name, thing in engine.attached.items():
            if isinstance(thing, AttachedMetric | AttachedAverage) and thing.updated:
                packs[name] = thing.pack()
        return packs

    def progress(self, engine: Engine | None, worker: Worker | None, engines: Iterable[Engine] = ()) -> dict[str, Any]:
        """Where training stands: fields of `Pulse`; from any thread.

        Args:
            engine: the trainer, once it is built.
            worker: of this rank.
            engines: all engines: what any of them does is progress.
        """
        iteration, now = 0 if engine is None else engine.state.iteration, time.monotonic()
        moves = self._moves if self._within == iteration else 0
        moves += sum(one.announced for one in engines if one is not engine and one.running)
        if (iteration, moves) != self._place:
            self._place, self._since = (iteration, moves), now
        output: Mapping[str, Number] = {}
        with contextlib.suppress(Exception):  # the training thread may be changing it right now
            output = {} if engine is None else pack_numbers(engine.state.output, on_cpu=True)
        return {
            "iteration": iteration,
            "epoch": 0 if engine is None else engine.state.epoch,
            "moves": moves,
            "idle": now - self._since,
            "busy": 0.0 if worker is None else worker.busy,
            "samples": 0 if worker is None else worker.samples,
            "output": output,
        }

    def moved(self, engine: Engine | None) -> None:
        """The training thread began something else: that is progress too.

        Args:
            engine: the trainer, once it is built.
        """
        iteration = 0 if engine is None else engine.state.iteration
        self._moves = self._moves + 1 if self._within == iteration else 1
        self._within = iteration
