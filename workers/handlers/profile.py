"""A window of iterations under torch's profiler, on chosen ranks; the traces go into the run's folder.

Outside the window it costs nothing: the handlers wait for two iterations by number.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch.profiler import profile

from workers.engine import Engine
from workers.events import Events
from workers.handlers.ranks import Ranks, interval
from workers.locations import storage_at

__all__ = ["Profile"]


class Profile:
    """Profile some iterations.

    A trace opens in `chrome://tracing` and https://ui.perfetto.dev.

    Args:
        first: number of the first iteration in the window; a later one than the first few, which warm things up.
        iterations: how many.
        ranks: which ranks do it; for the orchestrator.
        folder: path or URL for the traces; default: `profiles` in the run's folder, for an engine alone in this one.
        options: for `torch.profiler.profile`: `record_shapes`, `profile_memory`, `with_stack` …

    Raises:
        ValueError: a number can't be used.

    Example:
        >>> orchestrator.attach(Profile(first=20, iterations=5, ranks=[0, 3]))  # doctest: +SKIP
    """

    def __init__(
        self,
        first: int = 10,
        iterations: int = 3,
        *,
        ranks: int | Sequence[int] | Literal["all"] = 0,
        folder: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        self.first = interval("Profile", first, "first")
        self.last = self.first + interval("Profile", iterations, "iterations") - 1
        self.ranks = ranks
        self.folder = None if folder is None else os.fspath(folder)
        self.options = options
        self._running: profile | None = None

    def attach(self, target: Engine | Ranks) -> None:
        """Wait for the window; at the orchestrator: on the chosen ranks."""
        if not isinstance(target, Engine):
            home: Any = getattr(target, "home", None)
            if self.folder is None and home is not None:
                self.folder = home.child("profiles").url
            target.send(self, rank=self.ranks)
            return
        target.add_event_handler(Events.GET_BATCH_STARTED(once=self.first), self._begin)
        target.add_phase_handler("gate", Events.ITERATION_COMPLETED(once=self.last), self._end)
        target.add_event_handler(Events.COMPLETED | Events.INTERRUPT | Events.EXCEPTION_RAISED, self._end)

    def _begin(self) -> None:
        if self._running is None:  # it is, if ranks went back into the window
            self._running = profile(**self.options)
            self._running.start()

    def _end(self, engine: Engine) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        running.stop()
        rank = 0 if engine.worker is None else engine.worker.membership.rank
        name = f"rank-{rank:04d}-iterations-{self.first}-{engine.state.iteration}.json"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            running.export_chrome_trace(str(path))
            storage = storage_at(self.folder or ".")
            storage.remove(name)  # of a window that ranks go through once more
            with storage.create(name) as file:
                file.write(path.read_bytes())
