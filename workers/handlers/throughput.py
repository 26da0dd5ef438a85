"""How fast training is: samples and tokens a second, and the share of the device's peak that the model makes use of.

Measured on each rank from the batches that its loader handed out; the driver adds the ranks up. The time in which ranks
wait at the ends of epochs, for evaluations and saves, does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from workers.engine import Engine
from workers.events import Events
from workers.handlers.ranks import Ranks, interval, number
from workers.parcels import Number

__all__ = ["Throughput"]


class Throughput:
    """Speed as metrics: "samples_per_second", "tokens_per_second", "mfu" (model FLOPs utilisation, 0 to 1).

    A transformer of N parameters needs about 6 N floating-point operations a token, forward and backward.

    Args:
        every: iterations of one measurement.
        tokens_per_sample: where samples are sequences of one length.
        flops_per_sample: floating-point operations for one sample, forward and backward.
        peak_flops: what one device can do in a second; both together give "mfu".
        samples: takes `state.batch` and gives its number of samples; default: what the loader handed out, else 1.
        clock: seconds, monotonic.

    Raises:
        ValueError: a number can't be used.

    Example:
        >>> orchestrator.attach(Throughput(tokens_per_sample=1024))  # doctest: +SKIP
    """

    def __init__(
        self,
        every: int = 10,
        *,
        tokens_per_sample: int | None = None,
        flops_per_sample: float | None = None,
        peak_flops: float | None = None,
        samples: Callable[[Any], int] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.every = interval("Throughput", every)
        for name, value in (("flops_per_sample", flops_per_sample), ("peak_flops", peak_flops)):
            if value is not None:
                number("Throughput", name, value, least=1.0)
        if tokens_per_sample is not None:
            interval("Throughput", tokens_per_sample, "tokens_per_sample")
        self.tokens_per_sample = tokens_per_sample
        self.flops_per_sample = flops_per_sample
        self.peak_flops = peak_flops
        self.samples = samples
        self._clock = clock
        self._since: float | None = None  # None: the next iteration begins a measurement
        self._seen = 0

    def attach(self, target: Engine | Ranks) -> None:
        """Measure from now on; at the orchestrator: on every rank."""
        if not isinstance(target, Engine):
            target.send(self)
            return
        target.add_event_handler(Events.ITERATION_STARTED, self._start)
        target.add_event_handler(Events.ITERATION_COMPLETED, self)
        target.add_event_handler(Events.EPOCH_COMPLETED, self._pause)

    def __call__(self, engine: Engine) -> None:
        """One iteration more; at the last of a measurement, tell."""
        state = engine.state
        if self.samples is not None:
            self._seen += self.samples(state.batch)
        else:
            self._seen += 1 if engine.worker is None else engine.worker.batch_size
        if state.iteration % self.every == 0 and self._since is not None:
            now = self._clock()
            self._tell(engine, self._seen / max(now - self._since, 1e-9))
            self._since, self._seen = now, 0

    def _start(self) -> None:
        if self._since is None:
            self._since, self._seen = self._clock(), 0

    def _pause(self) -> None:
        self._since = None

    def _tell(self, engine: Engine, speed: float) -> None:
        alone = engine.worker is None or engine.worker.world_size == 1
        told = {"samples_per_second": (speed, "sum")}
        if self.tokens_per_sample is not None:
            told["tokens_per_second"] = speed * self.tokens_per_sample, "sum"
        if self.flops_per_sample is not None and self.peak_flops is not None:
            told["mfu"] = speed * self.flops_per_sample / self.peak_flops, "mean"
        for name, (value, rule) in told.items():
            engine.state.metrics[name] = value if alone else Number(value=value, reduce=rule)  # type: ignore[arg-type]
