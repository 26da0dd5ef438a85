"""The store at which ranks meet to form a process group; it lives at the driver, so it outlives every rank.

Opened by the run before the ranks join. How they use it is in `workers/process_group.py`.
"""

from __future__ import annotations

import datetime
import socket
from types import TracebackType

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its stubs forget to export it

__all__ = ["Rendezvous"]


class Rendezvous:
    """A TCP store on a port chosen by the system.

    Args:
        host: address of this machine at which the ranks reach it.

    Example:
        >>> with Rendezvous("127.0.0.1") as (host, port):
        ...     port > 0
        True
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._store: TCPStore | None = None

    def __enter__(self) -> tuple[str, int]:
        limit = datetime.timedelta(seconds=30)
        # A listener of our own: torch's would be reached at every address of this machine, not only at this one.
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.create_server((self._host, 0), family=family, backlog=1024)
        port = listener.getsockname()[1]
        self._store = TCPStore(
            self._host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=limit,
            master_listen_fd=listener.detach(),
        )
        return self._host, self._store.port

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store = None  # its server thread ends with it
