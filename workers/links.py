"""The TCP links of one generation: found, bounded, and cut from any thread.

A rank that waits for a peer in gloo is freed by nothing but the end of its connections: not by `abort()`, and not by
`destroy_process_group()` as long as anything refers to the group. Gloo does not tell which connections are its own, so
they are found: what this process has opened while a group formed, and what another member says that it is the other end
of. Used by `process_group.py` alone.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import threading
from types import TracebackType

from torch.distributed import (  # type: ignore[attr-defined]  # its stubs forget to export them
    DistError,
    DistNetworkError,
    PrefixStore,
    Store,
    TCPStore,
)

from workers.rank import Membership
from workers.sockets import Name, call_at, calling_since, inodes, limit_silence, opened_since, shut

__all__ = ["Links", "StoreLine"]


class StoreLine:
    """This process' connection to the driver's store, for all its generations.

    It is not made anew for each: both ends look up the name of the other in DNS as they connect, and the store serves
    nobody meanwhile. An answer that is lost there costs all members five seconds.

    Args:
        address: host and port of the store.
        limit: seconds that it may take to answer.

    Raises:
        DistNetworkError: nobody answers there within the limit.
    """

    def __init__(self, address: Name, limit: float) -> None:
        host, port = address
        before = frozenset(inodes())
        seconds = datetime.timedelta(seconds=limit)
        self.address = address
        self.is_cut = False
        self._ends: list[socket.socket] = []
        self.store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=seconds)
        ends = (end for end in opened_since(before) if end.peer is not None and end.peer[1] == port)
        self._ends = [held for end in ends if (held := end.held()) is not None]

    def __del__(self) -> None:
        for end in self._ends:
            end.close()

    def answers(self) -> bool:
        """Whether it can still be used."""
        with contextlib.suppress(DistError):
            return not self.is_cut and not self.store.check(["nothing"])
        return False

    def cut(self) -> None:
        """Who waits for an answer gets an error; from any thread."""
        self.is_cut = True
        ends, self._ends = self._ends, []
        shut(ends)


class Links:
    """The connections of one member of one generation to its peers.

    As a context around whatever makes process groups it finds their links; all members enter it equally often. `sever`
    works at any time, from any thread, any number of times: before, while a group is formed, and after.

    Args:
        membership: this rank's place in the generation.
        limit: seconds that one block may take to form its groups.

    Example:
        >>> links = Links(membership, limit=2.0)  # doctest: +SKIP
        >>> store = links.meet_at(StoreLine(("10.0.0.1", 29500), limit=15.0))  # doctest: +SKIP
        >>> with links:  # doctest: +SKIP
        ...     dist.init_process_group("gloo", store=store, rank=0, world_size=2)
        >>> links.sever()  # a collective that waits raises  # doctest: +SKIP
        1
    """

    def __init__(self, membership: Membership, *, limit: float) -> None:
        self.membership = membership
        self.limit = limit
        self.severed = False
        self._line: StoreLine | None = None
        self._keys: Store | None = None
        self._lock = threading.Lock()
        self._ends: list[socket.socket] = []
        self._before: frozenset[int] | None = None  # inodes that were there when the block was entered
        self._blocks = 0  # that are done
        self._alarm: threading.Timer | None = None
        self._is_late = False
        self._silence: float | None = None

    def __len__(self) -> int:
        """How many links are held."""
        return len(self._ends)

    def meet_at(self, line: StoreLine) -> Store:
        """Take the store through which the members find each other; what is given back has this generation's keys.

        Raises:
            DistNetworkError: `sever` was called before.
        """
        with self._lock:
            self._refuse_if_severed()
            self._line = line
        line.store.set_timeout(datetime.timedelta(seconds=self.limit))
        self._keys = PrefixStore(f"generation-{self.membership.generation}", line.store)
        return self._keys

    def __enter__(self) -> Links:
        assert self._keys is not None, "meet_at() comes before the first group"
        with self._lock:
            self._refuse_if_severed()
            self._before = frozenset(inodes())
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
                self._refuse_if_severed(error)
                self._blocks += 1

    def sever(self) -> int:
        """Cut every link; what waits on one raises here at once, and so it does at the other end.

        While a group is formed nothing of it is known yet. Then the line to the store is cut, which frees a rank that
        waits for the addresses of others (13 ms), and this rank calls at its own door in the name of each peer, which
        frees it from waiting for one that never calls: gloo would do that for five times its timeout. Its own calls
        that nobody answers, as when the network is cut, are ended.

        Returns:
            How many links were cut.
        """
        with self._lock:
            self.severed = True
            ends, self._ends = self._ends, []
            before, line = self._before, self._line
            is_forming = before is not None or self._blocks == 0
        shut(ends)
        if line is not None and is_forming:
            line.cut()
        if before is not None:
            shut(calling_since(before))
            for door in (end for end in opened_since(before) if end.listens):
                call_at(door.local, self.membership.world_size)
        return len(ends)

    def bound(self, idle_seconds: float) -> None:
        """Let a link break by itself when the other machine has not answered for so long, instead of never.

        Two options are needed: keepalive for who only receives, the user timeout for who has sent something. A peer
        that is stopped or computes is no reason: its kernel answers.

        Args:
            idle_seconds: at least 1; also for links that are found later.
        """
        with self._lock:
            self._silence = idle_seconds
            ends = list(self._ends)
        for end in ends:
            limit_silence(end, idle_seconds)

    # ---------------------------------------------------------------- finding them
    def _find(self) -> None:
        """Keep those of the new connections that another member knows as well.

        Told are the doors (listeners) and the near ends of everything new. A link leads to another member's door, or
        comes from another member's end through a door of mine; a stranger's does neither.
        """
        assert self._keys is not None
        assert self._before is not None
        new = list(opened_since(self._before))
        own = {end.local for end in new if end.listens}
        connected = [end for end in new if not end.listens]
        key = f"links/{self._blocks}"
        told = json.dumps([list(own), [end.local for end in connected]])
        self._keys.set(f"{key}/{self.membership.rank}", told)
        others = [f"{key}/{rank}" for rank in range(self.membership.world_size) if rank != self.membership.rank]
        heard = [json.loads(text) for text in self._keys.multi_get(others)] if others else []
        doors = {(host, port) for theirs, _ in heard for host, port in theirs}
        callers = {(host, port) for _, theirs in heard for host, port in theirs}
        known = [end for end in connected if end.peer in doors or (end.local in own and end.peer in callers)]
        held = [copy for end in known if (copy := end.held()) is not None]
        with self._lock:
            self._ends += held
        if self.severed:  # meanwhile
            self.sever()
        elif self._silence is not None:
            self.bound(self._silence)

    # ---------------------------------------------------------------- not finding each other
    def _late(self) -> None:
        self._is_late = True
        self.sever()

    def _refuse_if_severed(self, cause: BaseException | None = None) -> None:
        if not self.severed:
            return
        member = self.membership
        where = f"process group of generation {member.generation}, rank {member.rank} of {member.world_size}"
        if self._is_late:
            what = f"not formed within {self.limit:g} s, so a member is gone or can't be reached"
        else:
            what = "cut while it was formed"
        raise DistNetworkError(f"{where}: {what}") from cause
