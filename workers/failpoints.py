"""Named places in the real code at which a test can make a process fail: off unless the environment arms them.

`RANKFIRE_FAILPOINTS="shard.synced=kill@1#2; lease.renewed=sleep:0.5"` arms two: the first kills rank 1
when it comes by for the second time. With a `!` behind it, it fires in one process only, the first that gets there:
whoever takes that one's place comes by unharmed. `POINTS` names them all; a test demands that every one of them is hit
by a test. A process that is not armed pays one attribute test per point, and none of them lies in the training loop.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["POINTS", "TRACE", "VARIABLE", "Armed", "FailpointError", "arm", "armed", "failpoint", "parse"]

VARIABLE = "RANKFIRE_FAILPOINTS"
TRACE = "RANKFIRE_FAILPOINTS_TRACE"  # a file to which every hit is appended: how a test knows that its fault fired

POINTS: Mapping[str, str] = {
    "save.planned": "a rank has planned, and has not told",
    "save.frozen": "a rank has copied its share of the state",
    "shard.opened": "a rank has opened the file of its tensors, nothing is written yet",
    "shard.half": "a rank has written some of its tensors, the file is not synced",
    "shard.synced": "a rank's tensors are on the disk",
    "rank_file.synced": "a rank's own file is on the disk, its receipt is not sent",
    "commit.received": "the driver has all receipts, the index is not written",
    "commit.indexed": "the index is written, the manifest is not",
    "commit.manifest": "the manifest is in the staging folder, which has not got its name yet",
    "commit.named": "the checkpoint has its name, which may not be on the disk yet",
    "commit.done": "the checkpoint is committed, nobody was told",
    "retention.renamed": "a checkpoint that may go has lost its name, its files are there",
    "retention.half": "some files of a checkpoint that may go are removed",
    "retention.removed": "a checkpoint is gone, the journal does not know",
    "lease.claimed": "a driver owns the run, nothing is written yet",
    "lease.renewed": "a driver has renewed its lease",
    "journal.half": "half of a line is in the journal",
    "snapshot.taken": "a rank has copied its state in memory, and has not told",
    "rewind.received": "a rank has the snapshot that it shall take up",
    "rewind.restored": "a rank has taken up a snapshot",
    "load.verified": "a checkpoint was verified, no rank has read it",
    "load.read": "a rank has read a checkpoint, nothing of it is taken up yet",
    "load.restored": "a rank has taken up a checkpoint",
}
"""Every failpoint, and what has happened when a process comes by."""

_ACTIONS = ("kill", "raise", "exit", "stop", "enospc", "eio", "sleep")
_FORM = re.compile(
    r"(?P<name>[\w.]+)=(?P<action>[a-z]+)(:(?P<value>\d+(\.\d+)?))?(@(?P<rank>\d+))?(#(?P<hit>[1-9]\d*))?(?P<once>!)?"
)


class FailpointError(RuntimeError):
    """What a failpoint raises that is armed with `raise`."""


@dataclass(slots=True)
class Armed:
    """One failpoint that is on.

    Args:
        action: kill (SIGKILL), raise, exit (code 70, without clean-up), stop (SIGSTOP), enospc and eio (the `OSError`),
            sleep.
        value: seconds to sleep; for `enospc` and `eio` how many times it happens, 0 for ever.
        rank: only in this rank; None in every process.
        hit: at which coming by, counted from 1 in each process.
        once: only in the first process that gets there, of all that share a trace.
    """

    action: str
    value: float = 0.0
    rank: int | None = None
    hit: int = 1
    once: bool = False
    seen: int = 0


_armed: dict[str, Armed] = {}
_lock = threading.Lock()


def failpoint(name: str, rank: int | None = None) -> None:
    """Come by a failpoint.

    Args:
        name: one of `POINTS`.
        rank: of the rank that comes by; None for the driver.

    Raises:
        FailpointError: it is armed with `raise`.
        OSError: it is armed with `enospc` or `eio`.
    """
    if not _armed:
        return
    assert name in POINTS, f"failpoint {name!r} is not in POINTS"
    point = _armed.get(name)
    if point is None or (point.rank is not None and point.rank != rank):
        return
    with _lock:
        point.seen += 1
        due = point.hit <= point.seen < point.hit + _times(point)
    if due and not (point.once and _has_fired(name)):
        _fail(name, point, rank)


def armed(name: str) -> bool:
    """Whether a failpoint is on: for code that must do something in two steps so that one can lie between them."""
    return name in _armed


def arm(text: str) -> None:
    """Arm what a text says, instead of what was armed before; an empty text disarms all.

    Raises:
        ValueError: the text can't be read, or names what does not exist.
    """
    parsed = parse(text)
    _armed.clear()
    _armed.update(parsed)


def parse(text: str) -> dict[str, Armed]:
    """Read `name=action[:value][@rank][#hit][!]`, several separated by semicolons.

    Raises:
        ValueError: it can't be read, or names what does not exist.

    Example:
        >>> parse("commit.named=kill#2")["commit.named"].hit
        2
    """
    found = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        match = _FORM.fullmatch(part)
        if match is None or match["action"] not in _ACTIONS or match["name"] not in POINTS:
            raise ValueError(
                f"{VARIABLE}: expected name=action[:value][@rank][#hit][!] with a name of {', '.join(POINTS)} and an "
                f"action of {', '.join(_ACTIONS)}; received {part!r}"
            )
        found[match["name"]] = Armed(
            action=match["action"],
            value=float(match["value"] or 0.0),
            rank=None if match["rank"] is None else int(match["rank"]),
            hit=int(match["hit"] or 1),
            once=match["once"] is not None,
        )
    return found


def _times(point: Armed) -> float:
    if point.action in ("enospc", "eio"):
        return point.value or float("inf")
    return 1


def _has_fired(name: str) -> bool:
    """Whether another process was here first; of several that come at once, one is told that none was."""
    trace = os.environ.get(TRACE)
    assert trace is not None, f"failpoint {name!r} is to fire once, so {TRACE} must name a file"
    try:
        os.close(os.open(f"{trace}.{name}", os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return True
    return False


def _fail(name: str, point: Armed, rank: int | None) -> None:
    if trace := os.environ.get(TRACE):
        descriptor = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, f"{name} {point.action} {'driver' if rank is None else rank}\n".encode())
        os.close(descriptor)
    if point.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif point.action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif point.action == "exit":
        sys.stderr.flush()
        os._exit(70)
    elif point.action == "raise":
        raise FailpointError(f"failpoint {name}")
    elif point.action == "sleep":
        time.sleep(point.value)
    else:
        number = errno.ENOSPC if point.action == "enospc" else errno.EIO
        raise OSError(number, os.strerror(number), f"failpoint {name}")


arm(os.environ.get(VARIABLE, ""))
