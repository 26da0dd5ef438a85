"""The clock of a simulation: it stands in for the module `time` in the driver's files, and moves only when told to.

`stand_in` puts it there; the world (`world.py`) moves it from one happening to the next.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest

__all__ = ["Clock", "stand_in"]

EPOCH = 1_700_000_000.0  # seconds since 1970 at which every simulation begins


class Clock:
    """What the driver takes for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return EPOCH + self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def stand_in(patch: pytest.MonkeyPatch, clock: Any) -> None:
    """Give the clock to every file of the driver that asks for the time, and to the tries of a storage."""
    for name, module in list(sys.modules.items()):
        ours = name.startswith("orchestrator.") or name == "workers.retry"
        if ours and getattr(module, "time", None) is time:
            patch.setattr(module, "time", clock)
