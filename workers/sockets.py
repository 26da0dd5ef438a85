"""The TCP sockets of this process: which were opened meanwhile, and what can be done to one that others use.

A socket of somebody else's is only looked at: a copy of it would outlive it, and may still be watched when its owner
thinks that it is gone. On Linux; elsewhere no socket is found. Used by `links.py`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["End", "Name", "call_at", "calling_since", "inodes", "limit_silence", "opened_since", "shut"]

Name = tuple[str, int]  # host and port of one end

_OWN = Path("/proc/self/fd")
_NOWHERE: Name = ("", 0)
_SYN_SENT = 2  # tcp_states.h
_KNOCK = 1.0  # seconds; a listener of this very process answers at once


@dataclass(frozen=True, slots=True)
class End:
    """This process' end of a connection, or a listener, which has no peer."""

    descriptor: int
    inode: int
    local: Name
    peer: Name | None
    listens: bool

    def held(self) -> socket.socket | None:
        """A second descriptor of it; None if it has gone meanwhile."""
        with contextlib.suppress(OSError):
            copy = os.dup(self.descriptor)
            if os.fstat(copy).st_ino == self.inode:
                return _socket(copy)
            os.close(copy)
        return None


def inodes() -> Iterator[int]:
    """Of every socket of this process."""
    return (inode for _, inode in _sockets())


def opened_since(before: Collection[int]) -> Iterator[End]:
    """The TCP sockets of this process whose inodes were not there before; each once."""
    seen = set(before)
    for descriptor, inode in _sockets():
        if inode not in seen and (end := _end(descriptor, inode)) is not None:
            seen.add(inode)
            yield end


def calling_since(before: Collection[int]) -> list[socket.socket]:
    """Second descriptors of the TCP sockets of this process that call somebody who has not answered yet.

    Args:
        before: inodes of those that are left out.
    """
    held = []
    for descriptor, inode in _sockets():
        if inode not in before and _calls(descriptor):
            end = End(descriptor, inode, _NOWHERE, None, listens=False)
            held += [copy for copy in [end.held()] if copy is not None]
    return held


def shut(ends: Iterable[socket.socket]) -> None:
    """Shut connections down, for whoever holds them, and close these descriptors."""
    for end in ends:
        with contextlib.suppress(OSError), end:  # one that the peer has reset is no longer connected
            end.shutdown(socket.SHUT_RDWR)


def limit_silence(end: socket.socket, seconds: float) -> None:
    """Let a connection break when the other machine has not answered for so long: 1 or more."""
    pause = max(1, int(seconds / 3))
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))  # of what was sent
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # and without anything to send
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, pause)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, pause)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def call_at(door: Name, world_size: int) -> None:
    """Be every peer that gloo may wait for at one of its listeners: each tells its number as it calls."""
    for number in range(world_size):
        with contextlib.suppress(OSError), socket.create_connection(door, timeout=_KNOCK) as caller:
            caller.sendall(struct.pack("=q", number))


def _sockets() -> Iterator[tuple[int, int]]:
    """Descriptor and inode of every socket of this process."""
    if sys.platform != "linux":
        return
    for name in os.listdir(_OWN):
        with contextlib.suppress(OSError):  # closed meanwhile
            facts = os.fstat(int(name))
            if stat.S_ISSOCK(facts.st_mode):
                yield int(name), facts.st_ino


def _end(descriptor: int, inode: int) -> End | None:
    """What a descriptor is, if it is TCP."""
    found = None
    with contextlib.suppress(OSError):
        looking = _socket(descriptor)
        try:
            is_stream = looking.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
            if is_stream and looking.family in (socket.AF_INET, socket.AF_INET6):
                listens = bool(looking.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
                local, peer = _name(looking.getsockname), None if listens else _name(looking.getpeername)
                if local is not None and (listens or peer is not None):
                    found = End(descriptor, inode, local, peer, listens)
        finally:
            looking.detach()
    return found


def _calls(descriptor: int) -> bool:
    """Whether a descriptor is TCP, and its first packet is on its way."""
    with contextlib.suppress(OSError):
        looking = _socket(descriptor)
        try:
            return looking.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _SYN_SENT
        finally:
            looking.detach()
    return False


def _socket(descriptor: int) -> socket.socket:
    """Wrap a descriptor as it is: not even a default timeout of the process may change it."""
    return socket.socket(-1, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, -1, fileno=descriptor)


def _name(ask: Callable[[], tuple[str, int]]) -> Name | None:
    try:
        host, port = ask()[:2]
    except OSError:  # not connected
        return None
    return host, port
