"""The TCP links of one generation: found, bounded, and cut from any thread.

A rank that waits for a peer in gloo is freed by nothing but the end of its connections: not by `abort()`, and not by
`destroy_process_group()` as long as anything refers to the group. Gloo does not tell which connections are its own, so
they are found: what this process has opened while a group formed, and what another member says that it is the other end
of. Used by `process_group.py` alone. Elsewhere than on Linux nothing is found, and nothing is cut.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import stat
import struct
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from torch.distributed import DistNetworkError, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from workers.rank import Membership

__all__ = ["Links"]

Name = tuple[str, int]  # host and port of one end

_OWN = Path("/proc/self/fd")
_KNOCK = 1.0  # seconds; a listener of this very process answers at once


class Links:
    """The connections of one member of one generation: to the store, and to its peers.

    As a context around whatever makes process groups it finds their links; all members enter it equally often. `sever`
    works at any time, from any thread, any number of times: before, while a group is formed, and after.

    Args:
        membership: this rank's place in the generation.
        limit: seconds that the store may take to answer, and that one block may take to form its groups.

    Example:
        >>> links = Links(membership, limit=2.0)  # doctest: +SKIP
        >>> store = links.connect("10.0.0.1", 29500)  # doctest: +SKIP
        >>> with links:  # doctest: +SKIP
        ...     dist.init_process_group("gloo", store=store, rank=0, world_size=2)
        >>> links.sever()  # a collective that waits raises  # doctest: +SKIP
        1
    """

    def __init__(self, membership: Membership, *, limit: float) -> None:
        self.membership = membership
        self.limit = limit
        self.severed = False
        self._store: Store | None = None
        self._lock = threading.Lock()
        self._to_store: list[socket.socket] = []
        self._to_peers: list[socket.socket] = []
        self._before: frozenset[int] | None = None  # inodes that were there when the block was entered
        self._alarm: threading.Timer | None = None
        self._is_late = False
        self._silence: float | None = None
        self._blocks = 0

    def __len__(self) -> int:
        """How many links to peers are held."""
        return len(self._to_peers)

    def connect(self, host: str, port: int) -> Store:
        """Connect to the driver's store; what is given back knows only keys of this generation.

        Raises:
            DistNetworkError: nobody answers there within the limit, or `sever` was called meanwhile.
        """
        before = frozenset(_inodes())
        limit = datetime.timedelta(seconds=self.limit)
        client = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)
        self._store = PrefixStore(f"generation-{self.membership.generation}", client)
        self._keep(self._to_store, [end for end in _opened_since(before) if end.peer and end.peer[1] == port])
        return self._store

    def __enter__(self) -> Links:
        assert self._store is not None, "connect() comes before the first group"
        with self._lock:
            if self.severed:
                raise DistNetworkError(self._ending())
            self._before = frozenset(_inodes())
        self._alarm = threading.Timer(self.limit, self._late)
        self._alarm.daemon = True
        self._alarm.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._alarm is not None
        try:
            if error is None and not self.severed:
                self._find()
        finally:
            self._alarm.cancel()
            with self._lock:
                self._before = None
            if self.severed:
                raise DistNetworkError(self._ending()) from error

    def sever(self) -> int:
        """Cut every link; what waits on one raises here at once, and so it does at the other end.

        While a group is formed nothing of it is known yet. Then the connection to the store is cut, which frees a rank
        that waits for the addresses of others (13 ms), and this rank calls at its own door in the name of each peer,
        which frees it from waiting for one that never calls: gloo would do that for five times its timeout.

        Returns:
            How many links to peers were cut.
        """
        with self._lock:
            self.severed = True
            peers, self._to_peers = self._to_peers, []
            store, self._to_store = self._to_store, []
            before = self._before
        for end in [*peers, *store]:
            with contextlib.suppress(OSError), end:  # one that the peer has reset is no longer connected
                end.shutdown(socket.SHUT_RDWR)
        if before is not None:
            for door in (end for end in _opened_since(before) if end.listens):
                _call_at(door.local, self.membership.world_size)
        return len(peers)

    def bound(self, idle_seconds: float) -> None:
        """Let a link break by itself when the other machine has not answered for so long, instead of never.

        Two options are needed: keepalive for who only receives, the user timeout for who has sent something. A peer
        that is stopped or computes is no reason: its kernel answers.

        Args:
            idle_seconds: at least 1; also for links that are found later.
        """
        with self._lock:
            self._silence = idle_seconds
            ends = list(self._to_peers)
        for end in ends:
            _limit_silence(end, idle_seconds)

    # ---------------------------------------------------------------- finding them
    def _find(self) -> None:
        """Keep those of the new connections that another member knows as well.

        Told are the doors (listeners) and the near ends of everything new. A link leads to another member's door, or
        comes from another member's end through a door of mine; a stranger's does neither.
        """
        assert self._store is not None
        assert self._before is not None
        new = list(_opened_since(self._before))
        own = {end.local for end in new if end.listens}
        connected = [end for end in new if not end.listens]
        key = f"links/{self._blocks}"
        self._blocks += 1
        told = json.dumps([list(own), [end.local for end in connected]])
        self._store.set(f"{key}/{self.membership.rank}", told)
        others = [f"{key}/{rank}" for rank in range(self.membership.world_size) if rank != self.membership.rank]
        heard = [json.loads(text) for text in self._store.multi_get(others)] if others else []
        doors = {(host, port) for theirs, _ in heard for host, port in theirs}
        callers = {(host, port) for _, theirs in heard for host, port in theirs}
        known = [end for end in connected if end.peer in doors or (end.local in own and end.peer in callers)]
        self._keep(self._to_peers, known)
        if self._silence is not None:
            self.bound(self._silence)

    def _keep(self, kept: list[socket.socket], ends: Collection[_End]) -> None:
        """Hold ends by descriptors of our own, which no later connection can take over."""
        held = [end.held() for end in ends]
        with self._lock:
            if not self.severed:
                kept += [end for end in held if end is not None]
                return
        for end in held:
            if end is not None:
                end.close()
        raise DistNetworkError(self._ending())

    # ---------------------------------------------------------------- not finding each other
    def _late(self) -> None:
        self._is_late = True
        self.sever()

    def _ending(self) -> str:
        member = self.membership
        where = f"process group of generation {member.generation}, rank {member.rank} of {member.world_size}"
        if self._is_late:
            return f"{where}: not formed within {self.limit:g} s, so a member is gone or can't be reached"
        return f"{where}: cut while it was formed"


# -------------------------------------------------------------------- this process' TCP sockets
@dataclass(frozen=True, slots=True)
class _End:
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


def _inodes() -> Iterator[int]:
    return (inode for _, inode in _sockets())


def _opened_since(before: Collection[int]) -> Iterator[_End]:
    """The TCP sockets of this process whose inodes were not there before; each once."""
    seen = set(before)
    for descriptor, inode in _sockets():
        if inode not in seen and (end := _end(descriptor, inode)) is not None:
            seen.add(inode)
            yield end


def _sockets() -> Iterator[tuple[int, int]]:
    """Descriptor and inode of every socket of this process."""
    if sys.platform != "linux":
        return
    for name in os.listdir(_OWN):
        with contextlib.suppress(OSError):  # closed meanwhile
            facts = os.fstat(int(name))
            if stat.S_ISSOCK(facts.st_mode):
                yield int(name), facts.st_ino


def _end(descriptor: int, inode: int) -> _End | None:
    """What a descriptor is, if it is TCP. It is only looked at: a copy of somebody else's would outlive it."""
    found = None
    with contextlib.suppress(OSError):
        looking = _socket(descriptor)
        try:
            is_stream = looking.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
            if is_stream and looking.family in (socket.AF_INET, socket.AF_INET6):
                listens = bool(looking.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
                local, peer = _name(looking.getsockname), None if listens else _name(looking.getpeername)
                if local is not None and (listens or peer is not None):
                    found = _End(descriptor, inode, local, peer, listens)
        finally:
            looking.detach()
    return found


def _socket(descriptor: int) -> socket.socket:
    """Wrap a descriptor as it is: not even a default timeout of the process may change it."""
    return socket.socket(-1, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, -1, fileno=descriptor)


def _name(ask: Callable[[], tuple[str, int]]) -> Name | None:
    try:
        host, port = ask()[:2]
    except OSError:  # not connected
        return None
    return host, port


def _call_at(door: Name, world_size: int) -> None:
    """Be every peer that gloo may wait for at a listener: each tells its number as it calls."""
    for number in range(world_size):
        with contextlib.suppress(OSError), socket.create_connection(door, timeout=_KNOCK) as caller:
            caller.sendall(struct.pack("=q", number))


def _limit_silence(end: socket.socket, seconds: float) -> None:
    pause = max(1, int(seconds / 3))
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, pause)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, pause)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
