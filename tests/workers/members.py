"""Members of process groups as plain processes, which a test leads step by step, and may stop or kill.

A member does on its main thread what it is asked to begin, and on another what it shall do at once, like a rank with
its control thread. Functions go by name, so they stand at the top of a test module.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil
import torch

from tests.processes import LIMIT, forkserver, serve_store
from tests.waiting import wait_until
from workers import process_group
from workers.faults import fault_kind
from workers.parcels import FaultKind
from workers.rank import Membership

__all__ = ["Member", "RaisedThereError", "begin", "first_to_end", "form", "members", "together"]


class RaisedThereError(Exception):
    """What a function raised in a member.

    Args:
        kind: what the rank would report.
        text: type and text of the exception.
    """

    def __init__(self, kind: FaultKind, text: str) -> None:
        super().__init__(kind, text)
        self.kind = kind
        self.text = text


class Member:
    """One process."""

    def __init__(self) -> None:
        context = forkserver()
        self.main, main = context.Pipe()
        self._control, control = context.Pipe()
        self._process = context.Process(target=_live, args=(main, control))
        self._process.start()
        main.close()
        control.close()
        self.pid = self._process.pid or 0

    def begin(self, function: Callable[..., Any], *args: Any) -> None:
        """Let it call a function on its main thread; `end` waits for that."""
        self.main.send((function, args))

    def end(self, timeout: float = LIMIT) -> Any:
        """What that function returned; raises what it raised as `RaisedThereError`."""
        return _answer(self.main, timeout)

    def has_ended(self, timeout: float = 0.0) -> bool:
        """Whether that function is done, after waiting a moment."""
        return self.main.poll(timeout)

    def do(self, function: Callable[..., Any], *args: Any) -> Any:
        """Both in one."""
        self.begin(function, *args)
        return self.end()

    def at_once(self, function: Callable[..., Any], *args: Any) -> Any:
        """Let it call a function on its control thread."""
        self._control.send((function, args))
        return _answer(self._control, LIMIT)

    def await_stop(self) -> None:
        """Wait until it has stopped itself (SIGSTOP)."""
        process = psutil.Process(self.pid)
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, LIMIT, "the member stops")

    def resume(self) -> None:
        """Let it go on after SIGSTOP."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL it, and see that this is how it ended."""
        self._process.kill()
        self._process.join(LIMIT)
        assert self._process.exitcode == -signal.SIGKILL

    def close(self) -> None:
        """End it, however it is."""
        self.main.close()
        self._control.close()
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join(LIMIT)


@contextlib.contextmanager
def members(count: int) -> Iterator[tuple[list[Member], tuple[str, int]]]:
    """So many processes, and the address of a store at which they can meet."""
    store = serve_store()
    with contextlib.ExitStack() as stack:
        started = [Member() for _ in range(count)]
        for member in started:
            stack.callback(member.close)
        yield started, ("127.0.0.1", store.port)


def begin(group: Sequence[Member], function: Callable[..., Any], *args: Any) -> None:
    """Let each begin `function(rank, *args)`; ranks are in the order of the group."""
    for rank, member in enumerate(group):
        member.begin(function, rank, *args)


def together(group: Sequence[Member], function: Callable[..., Any], *args: Any) -> list[Any]:
    """Let them call `function(rank, *args)` at the same time; their answers."""
    begin(group, function, *args)
    return [member.end() for member in group]


def first_to_end(group: Sequence[Member]) -> Member:
    """The member whose function is done first."""
    ready = wait([member.main for member in group], LIMIT)
    return next(member for member in group if member.main in ready)


# ------------------------------------------------------------------ in a member
def form(rank: int, world_size: int, store: tuple[str, int], generation: int = 0, forming: float = LIMIT) -> int:
    """Form a group on the CPU; returns how many links it has."""
    membership = Membership(generation=generation, rank=rank, world_size=world_size)
    process_group.form(membership, store, torch.device("cpu"), "127.0.0.1", timeout=10 * LIMIT, forming=forming)
    assert process_group._generation is not None
    return len(process_group._generation.links)


def _live(main: Connection, control: Connection) -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_serve, args=(control,), daemon=True).start()
    _serve(main)


def _serve(pipe: Connection) -> None:
    with contextlib.suppress(EOFError):
        while True:
            function, args = pipe.recv()
            pipe.send(_call(function, args))


def _call(function: Callable[..., Any], args: Sequence[Any]) -> tuple[bool, Any]:
    try:
        return True, function(*args)
    except BaseException as error:
        return False, (fault_kind(error), f"{type(error).__name__}: {error}")


def _answer(pipe: Connection, timeout: float) -> Any:
    assert pipe.poll(timeout), f"no answer within {timeout:g} s"
    fine, value = pipe.recv()
    if fine:
        return value
    raise RaisedThereError(*value)
