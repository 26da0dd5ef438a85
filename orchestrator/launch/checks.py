"""What `rankfire doctor` looks at on one machine: each check gives a finding, and none of them raises.

The same checks run on this machine and, by `nodes_check.py`, on every node of a cluster.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from orchestrator.launch.access import others_may_read
from workers.folder import Folder
from workers.locations import storage_at

__all__ = ["Finding", "Probe", "disk", "gpus", "ports", "probe_storage", "storage_findings", "token_file", "versions"]

FLOORS = {"torch": (2, 10), "ray": (2, 56)}  # older ones have holes: CVE-2026-24747, CVE-2026-57516
CONTENT = 4 << 20  # bytes that are written and read back
LEAST_FREE = 5 << 30  # bytes
FULL = 0.95  # of Ray's own disk: beyond that it refuses objects
SKEW = 2.0  # seconds between two clocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check has found.

    Args:
        what: was looked at.
        state: "ok", "warning", "bad", or "skipped" where it could not be looked at.
        text: what was found; where it is not well, also what to do.
    """

    what: str
    state: Literal["ok", "warning", "bad", "skipped"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A storage, tried from one machine.

    Args:
        host: of the machine.
        error: why it can't be written or read back; empty: it can.
        seconds: that `CONTENT` bytes took, both ways.
        skew: seconds by which the storage's clock is ahead of the machine's; None: it has none that can be seen.
        now: the machine's clock.
    """

    host: str
    error: str = ""
    seconds: float = 0.0
    skew: float | None = None
    now: float = 0.0

    def as_dict(self) -> dict[str, object]:
        """As plain values, to travel."""
        return asdict(self)


def versions() -> list[Finding]:
    """Whether what is installed is new enough."""
    found = []
    for package, floor in FLOORS.items():
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            mend = f"pip install '{package}>={floor[0]}.{floor[1]}'"
            found.append(Finding(what=package, state="bad", text=f"is not installed; {mend}"))
            continue
        numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
        wanted = f"{floor[0]}.{floor[1]}"
        old = f"{version}, older than {wanted}, which mends known holes; pip install '{package}>={wanted}'"
        found.append(
            Finding(what=package, state="ok" if numbers >= floor else "bad", text=version if numbers >= floor else old)
        )
    return found


def token_file(environment: Mapping[str, str]) -> Finding:
    """Whether others of this machine may read the user's token."""
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path(environment.get("HOME", "~")).expanduser() / ".ray" / "auth_token"
    try:
        open_to_others = others_may_read(path)
    except FileNotFoundError:
        where = "RAY_AUTH_TOKEN" if environment.get("RAY_AUTH_TOKEN") else ""
        text = f"given by {where}" if where else f"none at {path}; a cluster that asks for one needs it"
        return Finding(what="token", state="ok" if where else "skipped", text=text)
    except OSError as error:
        return Finding(what="token", state="bad", text=f"{path} can't be read: {error.strerror}")
    mode = f"{path.stat().st_mode & 0o777:04o}"
    if open_to_others:
        text = f"{path} has mode {mode}, so others of this machine may read it; chmod 600 {path}"
        return Finding(what="token", state="bad", text=text)
    return Finding(what="token", state="ok", text=f"{path}, mode {mode}")


def disk(what: str, path: Path) -> Finding:
    """Whether there is room on the disk of a folder, or of the one above it that is there."""
    here = next(folder for folder in (path, *path.parents) if folder.exists())
    usage = shutil.disk_usage(here)
    free, share = usage.free / 2**30, (usage.total - usage.free) / max(usage.total, 1)
    text = f"{free:.1f} GiB free at {here}, {share:.0%} used"
    if usage.free < LEAST_FREE or share > FULL:
        return Finding(what=what, state="warning", text=f"{text}; make room: a full disk ends saves, and Ray's objects")
    return Finding(what=what, state="ok", text=text)


def ports() -> Finding:
    """Whether a port can be listened on and reached at this machine's own address, as ranks reach the driver."""
    try:
        with (
            socket.create_server(("", 0)) as listener,
            socket.create_connection(("127.0.0.1", listener.getsockname()[1]), timeout=5),
        ):
            return Finding(what="ports", state="ok", text="this machine listens, and is reached")
    except OSError as error:
        mend = "see what of a firewall or sandbox forbids it"
        return Finding(what="ports", state="bad", text=f"no port can be listened on: {error.strerror or error}; {mend}")


def gpus(asked: float) -> Finding:
    """Whether there are GPUs where some are asked for; seen by their device files, without torch."""
    there = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*")) + [
        path.name for path in Path("/dev").glob("kfd")
    ]
    if asked and not there:
        text = "none on this machine, and the job asks for some; run it where they are, or write workers.gpus: 0"
        return Finding(what="gpus", state="warning", text=text)
    return Finding(what="gpus", state="ok", text=", ".join(there) or "none, and none is asked for")


def probe_storage(url: str) -> Probe:
    """Write something into a storage, read it back, and remove it."""
    host, name = socket.gethostname(), f".doctor-{uuid.uuid4().hex}"
    content, began = os.urandom(CONTENT), time.monotonic()
    skew = None
    try:
        storage = storage_at(url)
        storage.claim(name, content)
        try:
            if storage.read(name) != content:
                return Probe(host=host, error="what was read back is not what was written")
            if isinstance(storage, Folder):
                skew = (storage.root / name).stat().st_mtime - time.time()
        finally:
            storage.remove(name)
    except (OSError, ValueError) as error:
        return Probe(host=host, error=str(getattr(error, "strerror", None) or error))
    return Probe(host=host, seconds=time.monotonic() - began, skew=skew, now=time.time())


def storage_findings(url: str, probe: Probe) -> list[Finding]:
    """What the trial of a storage from one machine says."""
    what = f"storage from {probe.host}"
    if probe.error:
        mend = "mount it there, or give its user the right to write; or name another storage"
        return [Finding(what=what, state="bad", text=f"{url} can't be written: {probe.error}; {mend}")]
    speed = 2 * CONTENT / max(probe.seconds, 1e-6) / 2**20
    found = [Finding(what=what, state="ok", text=f"{url} written and read back, {speed:.0f} MiB/s")]
    if probe.skew is not None:
        off = abs(probe.skew) > SKEW
        text = f"{probe.skew:+.1f} s against the storage's" + ("; set both by NTP" if off else "")
        found.append(Finding(what=f"clock of {probe.host}", state="warning" if off else "ok", text=text))
    return found
