"""What became of a run, told by its folder alone: the end of its journal, and who owns it. No daemon is asked.

Reads little, so that a thousand runs are listed in a moment. Called by the commands that look at runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import SystemFailure
from orchestrator.journal import NAME, SEGMENTS, lines_of
from orchestrator.lease import TTL, owner_of
from orchestrator.stopping import asked_to_stop
from workers.folder import Folder
from workers.storage import Storage

__all__ = ["FAULTS", "RunState", "events_of", "look_at", "runs_in"]

TAIL = 16 << 10  # bytes of a journal's end that tell how the run stands
LATEST = 1e11  # seconds since 1970, in the year 5138: what is later is no time
SILENT = 3 * TTL  # seconds after which an owner on another machine counts as gone, for who only looks
READERS = 16  # threads: an object store answers slowly, but many at once
ENDS = {"RUN_COMPLETED": "completed", "RUN_FAILED": "failed", "RUN_INTERRUPTED": "interrupted"}
FAULTS = frozenset(
    {
        "CHECKPOINT_REFUSED", "HANG_DETECTED", "JOURNAL_REMOVED", "LEFT_BEHIND", "OBSERVATIONS_DROPPED",
        "PREEMPTION_NOTICE", "RECOVERED", "RUN_FAILED", "SPARE_LOST", "STRAGGLER_DETECTED", "WORKER_LOST",
    }
)  # fmt: skip
"""Events of a journal that tell of what went wrong, and of its mending."""
PLACE: dict[str, Any] = {"time": None, "epoch": 0, "iteration": 0}  # of a line that tells none of these


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """How a run stands.

    Args:
        run: its id.
        url: its folder.
        state: `new` (nothing begun), `running`, `stopping`, `lost` (its driver is gone without a word), or how it
            ended: `completed`, `terminated`, `interrupted`, `failed`; `unreadable` in a list, where one run alone
            can't be read.
        epoch, iteration: where the journal's last line was written.
        changed: when that was, in seconds since 1970; None: there is no line.
        owner: who runs it, or ran it last, in words; empty: unknown.
        token: that one's fencing token.
        reason: why it ended so, if the journal says.
    """

    run: str
    url: str
    state: str
    epoch: int = 0
    iteration: int = 0
    changed: float | None = None
    owner: str = ""
    token: int = 0
    reason: str = ""

    @property
    def lives(self) -> bool:
        """Whether somebody runs it."""
        return self.state in ("running", "stopping")


def look_at(home: Storage) -> RunState:
    """How the run stands whose folder this is.

    Raises:
        SystemFailure: its storage can't be read.
    """
    run = home.url.rstrip("/").rpartition("/")[2]
    try:
        last, end = (_sound(line) for line in _ending(home))
        token, owner, standing = owner_of(home)
        lives = standing == "held" or (standing == "watch" and owner is not None and _beats(home, token))
        asked = asked_to_stop(home, token) if lives else None
    except OSError as error:
        raise SystemFailure(f"run {run!r}: {home.url} can't be read: {error.strerror or error}") from error
    return RunState(
        run=run,
        url=home.url,
        state=_state(end, lives=lives, stopping=asked is not None, begun=bool(last)),
        epoch=last.get("epoch", 0),
        iteration=last.get("iteration", 0),
        changed=last.get("time"),
        owner="" if owner is None else str(owner),
        token=token,
        reason="" if lives else str(end.get("text") or end.get("reason") or ""),
    )


def runs_in(root: Storage) -> list[RunState]:
    """All runs of a storage, the one that changed last first; what can't be read of them spoils no other's line.

    Raises:
        SystemFailure: the storage itself can't be read.
    """
    try:
        names = root.names()
        with ThreadPoolExecutor(1 if isinstance(root, Folder) else READERS) as readers:
            found = list(readers.map(lambda name: _look_if_run(root, name), names))
    except OSError as error:
        raise SystemFailure(f"storage: {root.url} can't be read: {error.strerror or error}") from error
    return sorted((one for one in found if one is not None), key=lambda one: -(one.changed or 0.0))


def events_of(home: Storage) -> Iterator[dict[str, Any]]:
    """The journal's lines, oldest first; none if the run has not begun. One that is damaged comes as `UNREADABLE`."""
    with contextlib.suppress(FileNotFoundError):
        for line in lines_of(home.locate(NAME)):
            given = _parse(line)
            whole = isinstance(given.get("event"), str)
            yield {**PLACE, **_sound(given)} if whole else {**PLACE, "event": "UNREADABLE"}


def _look_if_run(root: Storage, name: str) -> RunState | None:
    home = root.child(name)
    try:
        names = set(home.names())
        return look_at(home) if names & {NAME, SEGMENTS, "lease", "spec.yaml"} else None
    except OSError as error:
        reason = f"{home.url} can't be read: {error.strerror or error}"
    except SystemFailure as failure:
        reason = str(failure)
    return RunState(run=name, url=home.url, state="unreadable", reason=reason)


def _state(end: dict[str, Any], *, lives: bool, stopping: bool, begun: bool) -> str:
    if lives:
        return "stopping" if stopping else "running"
    if (event := end.get("event")) in ENDS:
        return "terminated" if end.get("status") == "terminated" else ENDS[event]
    return "lost" if begun else "new"


def _ending(home: Storage) -> tuple[dict[str, Any], dict[str, Any]]:
    """The journal's last line, and the last one that tells of a run's start or end."""
    content = _tail(home)
    whole = content[: content.rfind(b"\n") + 1]
    last = _parse(whole[whole.rstrip(b"\n").rfind(b"\n") + 1 :])
    at = whole.rfind(b'{"event": "RUN_')
    return last, {} if at < 0 else _parse(whole[at : whole.index(b"\n", at)])


def _parse(line: bytes) -> dict[str, Any]:
    try:
        given = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return given if isinstance(given, dict) else {}


def _sound(line: dict[str, Any]) -> dict[str, Any]:
    """A journal's line, without an epoch, iteration or time that can't be one."""
    kept = dict(line)
    for key in ("epoch", "iteration"):
        if not (type(value := line.get(key)) is int and 0 <= value < 2**63):
            kept.pop(key, None)
    at = line.get("time")
    if isinstance(at, bool) or not isinstance(at, int | float) or not abs(at) < LATEST:  # nor is NaN
        kept.pop("time", None)
    return kept


def _tail(home: Storage) -> bytes:
    if not isinstance(home, Folder):
        segments = home.names(SEGMENTS)
        return home.read(f"{SEGMENTS}/{segments[-1]}")[-TAIL:] if segments else b""
    try:
        with (home.root / NAME).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            return file.read()
    except FileNotFoundError:
        return b""


def _beats(home: Storage, token: int) -> bool:
    """Whether an owner of whom nothing else is known seems to renew its lease; an object store does not tell."""
    if not isinstance(home, Folder):
        return True
    try:
        return time.time() - (home.root / "lease" / f"{token:08d}.json").stat().st_mtime < SILENT
    except FileNotFoundError:
        return False
