"""The store at which ranks meet to form a process group; it lives at the driver, so it outlives every rank.

Opened by the run before the ranks join. How they use it is in `workers/process_group.py`.
"""

from __future__ import annotations

import datetime
import errno
import socket
from types import TracebackType

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its stubs forget to export it

from orchestrator.errors import SystemFailure, explain

__all__ = ["Rendezvous"]

WAITING = 1024  # ranks that may knock at once


class Rendezvous:
    """A TCP store on a port that the system has free, listened to at one address only, and before torch knows of it.

    Args:
        host: address of this machine at which the ranks reach it.

    Raises:
        SystemFailure: on entering, there is no free port.

    Example:
        >>> with Rendezvous("127.0.0.1") as (host, port):
        ...     port > 0
        True
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._store: TCPStore | None = None

    def __enter__(self) -> tuple[str, int]:
        listener = self._listen()
        port = listener.getsockname()[1]
        self._store = TCPStore(
            self._host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=datetime.timedelta(seconds=30),
            master_listen_fd=listener.detach(),
        )
        return self._host, port

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            try:
                return socket.create_server((self._host, 0), family=family, backlog=WAITING)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:  # the ranks' word for this machine, which has another itself
                    raise
                return socket.create_server(("", 0), family=family, backlog=WAITING)
        except OSError as error:
            raise SystemFailure(
                explain(
                    "the store at which ranks meet",
                    expected=f"a free port at {self._host}",
                    received=error.strerror or str(error),
                    mend="see what holds the ports of this machine (ss -lnt), or widen net.ipv4.ip_local_port_range",
                )
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store = None  # its server thread ends with it
