"""What a shipped handler may do with the orchestrator it is attached to, as a protocol.

The orchestrator itself is floors above the handlers, which import it through this file only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from orchestrator.checkpoints.registry import Registry
from orchestrator.settings import Settings
from workers.events import EventExpression
from workers.state import State
from workers.storage import Storage

__all__ = ["Driver"]


class Driver(Protocol):
    """The driver, as handlers see it."""

    registry: Registry
    settings: Settings

    @property
    def home(self) -> Storage:
        """The run's folder."""
        ...

    @property
    def state(self) -> State:
        """The trainer's state over all ranks."""
        ...

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The reduced metrics."""
        ...

    @property
    def evaluated(self) -> Mapping[str, int]:
        """Metric of an evaluation → iteration at which it was measured last."""
        ...

    def evaluate(self, engine: str, *, prefix: str | None = None) -> Mapping[str, Any]:
        """Evaluate on all ranks."""
        ...

    def checkpoint(self, *, wait: bool = False) -> str | None:
        """Save now."""
        ...

    def saved_at(self) -> int | None:
        """Wait until no save is in flight; iteration of this run's last checkpoint, None if it has made none."""
        ...

    def at_boundary(self, function: Callable[[], None]) -> None:
        """Call a function when all ranks stand after one common iteration."""
        ...

    def note(self, event: str, /, **fields: object) -> None:
        """Write a line into the journal."""
        ...

    def listen(
        self,
        event: EventExpression | str,
        handler: Callable[..., Any],
        *args: Any,
        engine: str = "trainer",
        blocking: bool | None = None,
        phase: str = "user",
        **kwargs: Any,
    ) -> object:
        """Register a driver handler; the arguments are those of `Registrations.listen`."""
        ...
