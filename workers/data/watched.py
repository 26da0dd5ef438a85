"""A torch `DataLoader` that sees at once when one of its loader processes is gone.

torch looks after five seconds, and then its loader can't be used any more. Here what is left of the processes is ended,
and whoever fetches decides what follows: see `fetching.py`.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

__all__ = ["ProcessesLost", "WatchedLoader"]

LOOK = 0.1  # seconds without a batch, after which it is looked whether all processes live
DYING = 0.5  # seconds in which a process that could not be reached may turn out to be gone


class ProcessesLost(Exception):  # noqa: N818 - it is no error of anybody's who sees it
    """Loader processes are gone, without having been told to end; says which, and how they ended."""


class WatchedLoader(DataLoader[object]):
    """torch's `DataLoader`; its iterators raise `ProcessesLost`, and have ended all of their processes then."""

    def _get_iterator(self) -> _BaseDataLoaderIter:
        if self.num_workers == 0:
            return super()._get_iterator()
        self.check_worker_number_rationality()
        return _Watched(self)


class _Watched(_MultiProcessingDataLoaderIter):
    """Batches of loader processes that are watched."""

    def _get_data(self) -> Any:
        try:
            return super()._get_data()  # type: ignore[no-untyped-call]
        except Exception as error:
            wait([process.sentinel for process in self._workers], DYING)
            lost = [process for process in self._workers if not process.is_alive()]
            if not lost:
                raise
            told = _tell(lost)
            self._end()
            raise ProcessesLost(told) from error

    def _try_get_data(self, timeout: float = LOOK) -> Any:
        return super()._try_get_data(timeout)  # type: ignore[no-untyped-call]

    def _end(self) -> None:
        """End what is left without a word: torch's own way takes locks, which the dead may have held."""
        for process in self._workers:
            process.kill()
        for process in self._workers:
            process.join()
        self._shutdown = True
        if self._pin_memory:
            self._pin_memory_thread_done_event.set()
        if self._worker_pids_set:
            _remove_worker_pids(id(self))
            self._worker_pids_set = False
        for queue in self._index_queues:
            queue.cancel_join_thread()
            queue.close()


def _tell(lost: Sequence[BaseProcess]) -> str:
    """Which processes ended, and how.

    Example:
        >>> class Ended:
        ...     pid, exitcode = 17, -9
        >>> _tell([Ended()])
        'loader process 17 was ended by SIGKILL'
    """
    return "; ".join(f"loader process {process.pid} {_ending(process.exitcode)}" for process in lost)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:  # a real-time signal, which has no name
            return f"was ended by signal {-code}"
    return f"ended with exit code {code}"
