"""A window of iterations under torch's profiler, on chosen ranks; the traces go into the run's folder.

Outside the window it costs nothing: the handlers wait for two iterations by number.
"""

from __future__ import annotations

import inspect
import logging
import os
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch.profiler import profile

from workers.engine import Engine
from workers.events import Events
from workers.folder import Folder
from workers.handlers.ranks import Ranks, interval
from workers.locations import storage_at

__all__ = ["Profile"]

_logger = logging.getLogger(__name__)
_windows: WeakKeyDictionary[Engine, list[Profile]] = WeakKeyDictionary()  # torch has one profiler in a process


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
        ValueError: an argument can't be used, the folder can't be written to, or the window overlaps that of another.

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
        try:
            inspect.signature(profile).bind_partial(**options)
        except TypeError as error:
            known = ", ".join(inspect.signature(profile).parameters)
            raise ValueError(
                f"Profile(options): expected arguments of torch.profiler.profile, received {', '.join(options)} "
                f"({error}); there are {known}"
            ) from None
        self._running: profile | None = None

    def attach(self, target: Engine | Ranks) -> None:
        """Wait for the window; at the orchestrator: on the chosen ranks."""
        if not isinstance(target, Engine):
            home: Any = getattr(target, "home", None)
            if self.folder is None and home is not None:
                self.folder = home.child("profiles").url
            target.send(self, rank=self.ranks)
            return
        self._check_folder()
        self._refuse_overlap(target)
        target.add_event_handler(Events.GET_BATCH_STARTED(once=self.first), self._begin)
        target.add_phase_handler("gate", Events.ITERATION_COMPLETED(once=self.last), self._end)
        target.add_event_handler(Events.COMPLETED | Events.INTERRUPT | Events.EXCEPTION_RAISED, self._end)

    def _check_folder(self) -> None:
        """A folder is made now, so that it is known before training whether traces can be written."""
        folder = None if self.folder is None else storage_at(self.folder)
        if isinstance(folder, Folder):
            try:
                with folder.create(probe := f".writable-{uuid.uuid4().hex}"):
                    pass
                folder.remove(probe)
            except OSError as error:
                raise ValueError(
                    f"Profile(folder): expected a folder that can be written to, received {self.folder!r} "
                    f"({type(error).__name__}: {error}); choose another, or leave it out"
                ) from None

    def _refuse_overlap(self, engine: Engine) -> None:
        for other in _windows.setdefault(engine, []):
            if self.first <= other.last and other.first <= self.last:
                raise ValueError(
                    f"Profile(first): expected a window of its own, received iterations {self.first} to {self.last} "
                    f"where another one has {other.first} to {other.last}; let it begin at {other.last + 1}"
                )
        _windows[engine].append(self)

    def _begin(self) -> None:
        if self._running is not None:  # it is, if ranks went back into the window
            return
        if torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
            _logger.warning("Profile: another profiler is at work at iteration %d; this window is left out", self.first)
            return
        self._running = profile(**self.options)
        self._running.start()

    def _end(self, engine: Engine) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        running.stop()
        rank = 0 if engine.worker is None else engine.worker.membership.rank
        name = f"rank-{rank:04d}-iterations-{self.first}-{engine.state.iteration}.json"
        try:
            self._write(running, name)
        except Exception as error:  # whatever a storage's library raises: a trace that is lost ends no training
            where = f"{self.folder or '.'}/{name}"
            _logger.warning("Profile: %s is not written: %s: %s; training goes on", where, type(error).__name__, error)

    def _write(self, ended: profile, name: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            ended.export_chrome_trace(str(path))
            storage = storage_at(self.folder or ".")
            storage.remove(name)  # of a window that ranks go through once more
            with storage.create(name) as file:
                file.write(path.read_bytes())
