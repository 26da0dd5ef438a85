"""Loader processes: how they are started, and how they end with the process that they load for.

They are never forked from a rank, whose many threads a fork would freeze in the middle of whatever they do. A server
that has imported torch forks them instead, so that one more costs a tenth of a second.
"""

from __future__ import annotations

import _multiprocessing  # type: ignore[import-not-found]
import contextlib
import multiprocessing
import os
import select
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize, _finalizer_registry  # type: ignore[attr-defined]
from types import FrameType
from typing import Any

from torch.utils.data import get_worker_info

from workers.data.carried import Carried

__all__ = ["LoaderProcess", "end_with", "forget_names", "forkserver"]

PRELOAD = ["torch.utils.data", "workers.data.fetching"]


def forkserver() -> BaseContext:
    """How loader processes are started, unless the user says otherwise."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)  # no effect on a server that runs already
    return context


class LoaderProcess:
    """The `worker_init_fn` of every loader: the process ends with its owner, and only then.

    It ignores Ctrl-C and SIGTERM, which often reach a whole group of processes: the rank that stops in an orderly way
    may still need a batch, and ends its loader processes itself. If the rank can't, being killed, they see it and go.

    Args:
        then: the user's own `worker_init_fn`.
    """

    def __init__(self, then: Callable[[int], object] | None = None) -> None:
        self.owner = os.getpid()
        self.then = then

    def __call__(self, worker_id: int) -> None:
        """Prepare this process; called by torch in it."""
        for number in (signal.SIGINT, signal.SIGTERM):  # not SIG_IGN, which programs started from here would inherit
            signal.signal(number, _ignore)
        _watch(self.owner)
        info = get_worker_info()
        wrapped = getattr(getattr(info, "dataset", None), "wrapped", None)
        if wrapped is not None:  # the user's function looks for the user's data set there
            object.__setattr__(info, "dataset", wrapped)
        if self.then is not None:
            self.then(worker_id)

    def __getstate__(self) -> dict[str, object]:
        return {"owner": self.owner, "then": None if self.then is None else Carried(self.then)}


def end_with(iterator: object) -> None:
    """See to it that torch's loader processes are gone with the iterator that they work for.

    torch asks them to end and waits for a while; then it sends SIGTERM, which they ignore. What is left is killed, also
    when this process ends: multiprocessing would send SIGTERM to all of its children then, and wait for them for ever.
    """
    processes = tuple(getattr(iterator, "_workers", ()))
    if processes:
        Finalize(iterator, _kill, args=(processes,), exitpriority=0)


def forget_names(iterator: object) -> None:
    """Take the names of a loader's semaphores away; all of its processes must have been seen at work.

    Python keeps a semaphore in /dev/shm by its name until its maker ends in order, or a helper process sees that the
    maker is gone. A cluster kills that helper together with the rank, and the names would stay for ever. Without a
    name a semaphore lives just as long as those who use it.
    """
    for semaphore in _semaphores(iterator):
        name = semaphore.name
        if name is not None:
            _cancel_removal(name)
            with contextlib.suppress(FileNotFoundError):
                _multiprocessing.sem_unlink(name)
            resource_tracker.unregister(name, "semaphore")


def _semaphores(iterator: object) -> Iterator[Any]:
    """The named semaphores in a loader's queues and events."""
    parts = [getattr(iterator, name, None) for name in ("_worker_result_queue", "_workers_done_event")]
    waiting, seen = [*parts, *getattr(iterator, "_index_queues", ())], set()
    while waiting:
        part = waiting.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        if (semaphore := getattr(part, "_semlock", None)) is not None and getattr(semaphore, "name", None):
            yield semaphore
        if type(part).__module__.startswith("multiprocessing."):
            waiting += vars(part).values()


def _cancel_removal(name: str) -> None:
    """What would remove the name at the end finds it gone."""
    for finalizer in list(_finalizer_registry.values()):
        if getattr(finalizer, "_args", None) == (name,):
            finalizer.cancel()


def _kill(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


def _watch(owner: int) -> None:
    """End this process when the owner is gone; where there is no pidfd (before Linux 5.3, macOS), do nothing."""
    if not hasattr(os, "pidfd_open"):
        return
    try:
        handle = os.pidfd_open(owner)
    except ProcessLookupError:
        os._exit(1)
    except OSError:  # the kernel does not know it, or a sandbox forbids it
        return

    def wait() -> None:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.poll()
        os._exit(1)

    threading.Thread(target=wait, name="rankfire-owner", daemon=True).start()
