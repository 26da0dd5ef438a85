"""What may be asked of a running engine: to stop, to leave out the rest of an epoch, to pause between iterations.

A request only sets flags, so it may come from any thread and at any time; the loop sees to it before it
starts the next iteration. The iteration in progress always finishes: other ranks may wait for it in a
collective.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from workers.dispatch import EventSource

__all__ = ["Steered"]

_REQUESTS = ("terminating", "terminating_epoch", "skip_epoch_completed", "interrupting", "skip_completed")


class Steered(EventSource):
    """An event source with a loop that can be steered. `Engine` is the one to use."""

    def __init__(self) -> None:
        super().__init__()
        self._boundary: Callable[[Any], object] | None = None
        self._clear_requests()

    def terminate(self, *, skip_completed: bool = False) -> None:
        """End the run after the iteration in progress: TERMINATE fires, then COMPLETED.

        Args:
            skip_completed: leave out COMPLETED.
        """
        self._skip_completed = skip_completed
        self._terminating = True
        self._requested = True

    def terminate_epoch(self, *, skip_epoch_completed: bool = False) -> None:
        """End the epoch after the iteration in progress; the iterations that it leaves out count as done.

        So epoch k always ends at iteration `k * epoch_length`. TERMINATE_SINGLE_EPOCH fires, then
        EPOCH_COMPLETED.

        Args:
            skip_epoch_completed: leave out EPOCH_COMPLETED; the epoch counts as completed all the same.

        Raises:
            RuntimeError: the epoch length is not known yet.
        """
        if self.state.epoch_length is None:
            raise RuntimeError(
                "terminate_epoch(): expected a known epoch length, received none before the data first ends; give "
                "run(epoch_length=...)"
            )
        self._skip_epoch_completed = skip_epoch_completed
        self._terminating_epoch = True
        self._requested = True

    def interrupt(self) -> None:
        """Leave the run after the iteration in progress: INTERRUPT fires; the next `run` goes on there."""
        self._interrupting = True
        self._requested = True

    def suppress(self) -> None:
        """In a handler of EXCEPTION_RAISED: let the run end quietly instead of raising.

        For an engine used alone. A run of the orchestrator ends with the exception all the same: other ranks, and who
        started it, must not take it for one that reached its goal.
        """
        self._suppressed = True

    @property
    def boundary(self) -> Callable[[Any], object] | None:
        """What is called between iterations."""
        return self._boundary

    def set_boundary(self, function: Callable[[Any], object] | None) -> None:
        """Have `function(engine)` called between iterations, until None is set; from any thread.

        It runs on the training thread, after `announced` was stored and before the batch is fetched:
        `state.iteration` iterations are complete, `announced` is the next one. If it calls `terminate()`,
        that one is not started. An iteration that was announced before this call may still run.

        Args:
            function: what to call, or None to call nothing any more.
        """
        self._boundary = function
        self._requested = True

    @property
    def requests(self) -> dict[str, bool]:
        """What was asked of the engine and has not been seen to; setting it asks for the same again."""
        return {name: getattr(self, f"_{name}") for name in _REQUESTS}

    @requests.setter
    def requests(self, requests: Mapping[str, bool]) -> None:
        for name in _REQUESTS:
            setattr(self, f"_{name}", requests[name])
        self._requested = True

    def _clear_requests(self) -> None:
        self._terminating = False
        self._terminating_epoch = False
        self._skip_epoch_completed = False
        self._interrupting = False
        self._skip_completed = False
        self._suppressed = False
        self._requested = True  # the first iteration looks: a boundary may be set already

    def _attend(self) -> bool:
        """See to what was requested; whether the next iteration may start."""
        self._requested = False  # first, so that what is requested from now on is seen at the next iteration
        boundary = self._boundary
        if boundary is not None:
            self._requested = True
            boundary(self)
        return not self._stopping()

    def _stopping(self) -> bool:
        return self._terminating or self._terminating_epoch or self._interrupting
