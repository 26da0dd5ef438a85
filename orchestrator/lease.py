"""Who may write a run: a lease in the run's storage, with a number that only grows.

Every owner claims the file of the next number (`lease/00000007.json`), which only one can; the highest number owns the
run, and whoever holds a lower one is fenced: it asks before everything that it makes durable. No clocks are compared:
an owner renews its file, and a newcomer watches whether it changes. Works on any storage that can say who was first.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from orchestrator.errors import FencedError, RunHeldError
from workers.failpoints import failpoint
from workers.storage import Storage

__all__ = ["TTL", "Lease", "Owner", "owner_of", "standing"]

TTL = 15.0  # seconds without a renewal after which an owner of whom nothing else is known counts as gone
RENEWALS = 4  # in so many seconds as the TTL
FOLDER = "lease"
_NAME = re.compile(r"[0-9]{8,200}\.json")
_AGES = 1e11  # seconds: what is longer ago, or would be waited for longer, is no time
_given_back: set[str] = set()  # owners that were this process, also if the storage did not take the word of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A process that owns a run, as it describes itself.

    Args:
        who: unique to this owner.
        host: name of its machine, for people.
        pid: its process id there.
        machine: the boot and the process namespace in which `pid` means something.
        born: when the process started, in clock ticks since boot: pids are used again.
        since: seconds since 1970, for people.
        ttl: seconds without a renewal after which it counts as gone.
        beat: how often it has renewed.
        released: it has ended the run in order.
    """

    who: str
    host: str
    pid: int
    machine: str
    born: str
    since: float
    ttl: float
    beat: int = 0
    released: bool = False

    @classmethod
    def here(cls, ttl: float) -> Owner:
        """This process."""
        return cls(
            who=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=_machine(),
            born=_status(os.getpid())[1],
            since=time.time(),
            ttl=ttl,
        )

    @classmethod
    def parse(cls, content: bytes) -> Owner | None:
        """Read a lease; None if it is damaged, and so nobody's."""
        try:
            owner = cls(**json.loads(content))
        except (ValueError, TypeError, RecursionError):
            return None
        texts, numbers = (owner.who, owner.host, owner.machine, owner.born), (owner.pid, owner.beat)
        times = (owner.since, owner.ttl)
        whole = all(isinstance(text, str) for text in texts) and all(isinstance(number, int) for number in numbers)
        sound = whole and all(isinstance(seconds, int | float) and 0 <= seconds < _AGES for seconds in times)
        return owner if sound and isinstance(owner.released, bool) else None

    def __str__(self) -> str:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"pid {self.pid} on {self.host}, running it since {began}"


def standing(
    owner: Owner | None, machine: str, status: Callable[[int], tuple[str, str]]
) -> Literal["free", "held", "watch"]:
    """What can be told of an owner at once.

    Args:
        owner: what its lease says; None: there is none, or it can't be read.
        machine: where this process is.
        status: pid → (state letter of the process, when it started); empty texts if there is none.

    Returns:
        "free": the run can be taken; "held": the owner runs; "watch": only time can tell.
    """
    if owner is None or owner.released:
        return "free"
    if owner.machine != machine:
        return "watch"
    state, born = status(owner.pid)
    if born != owner.born or state in ("Z", "X"):
        return "free"
    return "watch" if state in ("T", "t") else "held"


def owner_of(storage: Storage) -> tuple[int, Owner | None, Literal["free", "held", "watch"]]:
    """Look at who owns a run, without touching it.

    Args:
        storage: the run's folder.

    Returns:
        The newest fencing token (0: nobody ever owned it), its owner if that can be read, and how that one stands.
    """
    lease = Lease(storage, "")
    token = lease._newest()
    owner = lease._read(token) if token else None
    return token, owner, standing(owner, lease._me.machine, _status)


class Lease:
    """This process's claim to a run.

    Args:
        storage: the run's folder.
        run: the run's id, for errors.
        ttl: seconds without a renewal after which others may take the run.

    Attributes:
        token: the fencing token, which grows from owner to owner; 0 before `acquire`.
    """

    def __init__(self, storage: Storage, run: str, *, ttl: float = TTL) -> None:
        self.token = 0
        self._storage = storage
        self._run = run
        self._me = Owner.here(ttl)
        self._on_lost: Callable[[str], None] | None = None
        self._lost: str | None = None  # once it is, who has taken it, in words
        self._losing = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, tell: Callable[[str], None]) -> None:
        """Own the run, or say who does.

        Args:
            tell: called with a sentence if this must wait to see whether an owner is alive.

        Raises:
            RunHeldError: somebody else owns it; names them.
        """
        while True:
            token = self._newest()
            owner = None if token == 0 else self._read(token)
            if standing(owner, self._me.machine, _status) != "free":
                assert owner is not None, "only an owner can be in the way"
                self._see_it_gone(token, owner, tell)
            if self._claim(token + 1):
                break
        failpoint("lease.claimed")
        self._thread = threading.Thread(target=self._renew, name="rankfire-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """See that this process still owns the run; asked before anything is made durable.

        Raises:
            FencedError: it does not; names who does.
        """
        newest = self._newest()
        if newest != self.token:
            owner = self._read(newest) if newest else None
            raise FencedError.removed(self._run) if owner is None else FencedError.by(self._run, str(owner))

    def when_lost(self, function: Callable[[str], None]) -> None:
        """Have a function called, once, when the run is lost, with who has taken it: on another thread, or at once."""
        with self._losing:
            self._on_lost, lost = function, self._lost
        if lost is not None:
            function(lost)

    def release(self) -> None:
        """Give the run back; afterwards it is free at once. Nothing happens if it is not owned any more."""
        self._stop_renewing()
        if self.token:
            _given_back.add(self._me.who)
            with contextlib.suppress(FencedError, OSError):
                self.check()
                self._write(replace(self._me, released=True))

    def withdraw(self, remove: Callable[[], None]) -> None:
        """Give back a run that is nothing yet: it is removed, and this claim with it.

        Args:
            remove: removes all that the run has.

        Raises:
            FencedError: it is not owned any more, and nothing was removed.
        """
        self._stop_renewing()  # else the claim would be written again
        self.check()
        remove()
        self.token = 0

    # ---------------------------------------------------------------- within
    def _stop_renewing(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=self._me.ttl)
            self._thread = None

    def _see_it_gone(self, token: int, owner: Owner, tell: Callable[[str], None]) -> None:
        """Watch an owner for as long as it says; returns if it did not move."""
        if standing(owner, self._me.machine, _status) == "held":
            raise RunHeldError.by(self._run, str(owner))
        tell(f"run {self._run!r} belongs to {owner}; waiting {owner.ttl:g} s to see whether that is alive")
        until = time.monotonic() + owner.ttl
        while time.monotonic() < until:
            self._ended.wait(min(owner.ttl / 20, 0.5))
            now = self._read(token)
            if self._newest() != token or (now is not None and now.beat != owner.beat):
                raise RunHeldError.by(self._run, str(self._read(self._newest()) or owner))
            if standing(now, self._me.machine, _status) == "free":
                return

    def _claim(self, token: int) -> bool:
        try:
            self._storage.claim(_name(token), self._content(self._me))
        except FileExistsError:
            return False  # somebody was faster: look again
        self.token = token
        with contextlib.suppress(OSError):  # they mean nothing any more
            for old in self._tokens():
                if old < token - 1:
                    self._storage.remove(_name(old))
        return True

    def _renew(self) -> None:
        while not self._ended.wait(self._me.ttl / RENEWALS):
            try:
                self.check()
                self._me = replace(self._me, beat=self._me.beat + 1)
                self._write(self._me)
                failpoint("lease.renewed")
            except FencedError as error:
                with self._losing:
                    self._lost, tell = str(error), self._on_lost
                if tell is not None:
                    tell(self._lost)
                return
            except OSError:
                continue  # the storage may come back; whether the run is still ours is asked at every commit

    def _newest(self) -> int:
        return max(self._tokens(), default=0)

    def _tokens(self) -> list[int]:
        return [int(name[:-5]) for name in self._storage.names(FOLDER) if _NAME.fullmatch(name)]

    def _read(self, token: int) -> Owner | None:
        try:
            owner = Owner.parse(self._storage.read(_name(token)))
        except FileNotFoundError:
            return None
        return replace(owner, released=True) if owner is not None and owner.who in _given_back else owner

    def _write(self, owner: Owner) -> None:
        self._storage.replace(_name(self.token), self._content(owner))

    def _content(self, owner: Owner) -> bytes:
        return (json.dumps(asdict(owner)) + "\n").encode()


def _name(token: int) -> str:
    return f"{FOLDER}/{token:08d}.json"


def _machine() -> str:
    """What tells whether a pid can be asked after here: the kernel's boot, and the namespace of pids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex  # nothing is known, so nothing is ever the same


def _status(pid: int) -> tuple[str, str]:
    """State letter and start time of a process of this machine (proc(5), stat); empty if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]
