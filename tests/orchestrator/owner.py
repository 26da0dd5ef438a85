"""A process that owns a run, for the tests of leases: `python -m tests.orchestrator.owner URL TTL`.

It says that it owns the run, waits for a line, and then does what an owner does: writes into the journal, commits what
it had begun, begins another. What comes of it is told, one line each.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

from orchestrator.checkpoints.manifest import Manifest
from orchestrator.checkpoints.registry import Registry
from orchestrator.errors import RankfireError
from orchestrator.journal import Journal
from orchestrator.lease import Lease
from workers.locations import storage_at


def main(url: str, ttl: str) -> None:
    """Own the run until a line comes, then act and end."""
    home, lost = storage_at(url), threading.Event()
    lease = Lease(home, "r", ttl=float(ttl))
    lease.acquire(print)
    lease.when_lost(lambda _: lost.set())
    journal, registry = Journal(home, lease.check), Registry(home.child("checkpoints"), lease.check)
    journal.start(lease.token)
    journal.write("OWNED", token=lease.token)
    staging = registry.open(5)
    manifest = Manifest(
        run="r", epoch=1, iteration=5, epoch_length=None, world_size=1, time=0.0, metrics={}, token=lease.token
    )
    print("owns", lease.token, flush=True)
    sys.stdin.readline()
    acts: list[Callable[[], object]] = [
        lambda: journal.write("LATE", token=lease.token),
        lambda: registry.commit(staging, manifest, []),
        lambda: registry.open(6),
        journal.close,
    ]
    for act in acts:
        try:
            act()
        except RankfireError as error:
            print(type(error).__name__, error)
        else:
            print("done")
    print("lost" if lost.wait(0 if lease.token == max(lease._tokens()) else 30) else "owns still")
    lease.release()


if __name__ == "__main__":
    main(*sys.argv[1:])
