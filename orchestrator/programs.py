"""What the workers have built, as each tells it: engines, data, entries of the state, metrics, a device.

Kept for `ranks.py`, whose orders bring it about. What rank 0 built at the start stands for all: others' is the same.
"""

from __future__ import annotations

from typing import Any

from orchestrator.journal import Journal
from workers.messages import Built
from workers.rank import Place

__all__ = ["Programs"]


class Programs:
    """The programs of a run's workers.

    Args:
        journal: the record.

    Attributes:
        built: worker → what it told.
    """

    def __init__(self, journal: Journal) -> None:
        self.built: dict[int, Built] = {}
        self._journal = journal
        self._first: Built | None = None

    def take(self, told: Built, *, rank: int | None, place: Place | None) -> None:
        """A worker has built.

        Args:
            told: what.
            rank: that it holds; None for a spare.
            place: where it is, if that is known.
        """
        self.built[told.worker] = told
        self._journal.write(
            "WORKER_BUILT",
            rank=rank,
            pid=None if place is None else place.pid,
            seconds=round(told.seconds, 3),
            device=told.device,
            threads=told.threads,
            state_bytes=dict(told.state_bytes),
        )

    def settle(self, worker: int) -> None:
        """All have built: what this one did stands for all, from now on."""
        self._first = self.built[worker]

    @property
    def engines(self) -> tuple[str, ...]:
        """Names of the program's engines."""
        return self._any.engines

    @property
    def data(self) -> dict[str, Any]:
        """Fingerprint of the trainer's data; empty if it has no global order."""
        return dict(self._any.data)

    def empty_metrics(self, engine: str) -> dict[str, object]:
        """Empty copies of the metrics attached to an engine."""
        return dict(self._any.metrics.get(engine, {}))

    @property
    def _any(self) -> Built:
        assert self._first is not None, "nothing was built yet"
        return self._first
