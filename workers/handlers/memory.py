"""How much memory training takes, as metrics: of the device, and of the process. The driver keeps the worst rank's."""

from __future__ import annotations

import resource

import torch

from workers.engine import Engine
from workers.events import EventExpression, Events
from workers.handlers.ranks import Ranks
from workers.parcels import Number

__all__ = ["Memory"]

MIB = 2**20


class Memory:
    """Peaks in MiB: "device_memory" since the last look, "process_memory" (resident set) since the process began.

    Args:
        event: when to look.

    Example:
        >>> orchestrator.attach(Memory())  # doctest: +SKIP
    """

    def __init__(self, event: EventExpression = Events.EPOCH_COMPLETED) -> None:
        self.event = event

    def attach(self, target: Engine | Ranks) -> None:
        """Look from now on; at the orchestrator: on every rank."""
        if isinstance(target, Engine):
            target.add_phase_handler("metrics", self.event, self)
        else:
            target.send(self)

    def __call__(self, engine: Engine) -> None:
        """Look now."""
        peaks = {"process_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
        if torch.accelerator.is_available():
            peaks["device_memory"] = torch.accelerator.max_memory_allocated() / MIB
            torch.accelerator.reset_peak_memory_stats()
        alone = engine.worker is None or engine.worker.world_size == 1
        for name, peak in peaks.items():
            engine.state.metrics[name] = peak if alone else Number(value=peak, reduce="max")
