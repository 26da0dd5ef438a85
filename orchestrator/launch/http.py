"""Words with a cluster's dashboard over HTTP: bounded in time and size, no redirects, and errors that say what to do.

The token goes nowhere but to the host that the user named. Called by `jobs.py`; nothing here imports Ray.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
import urllib.parse
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import StartError, explain
from orchestrator.launch.access import Token

__all__ = ["Answer", "Dashboard"]

PATIENCE = 10.0  # seconds for one answer, from the first byte to the last
MOST = 64 << 20  # bytes of an answer
PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the status, and the body."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON; None if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def text(self) -> str:
        """The body's last line, cut short: servers answer with whole tracebacks."""
        lines = self.body.decode(errors="replace").strip().splitlines() or [""]
        return lines[-1][:300]


class Dashboard:
    """A cluster's dashboard.

    Args:
        url: as the user wrote it, such as `http://head:8265`.
        token: sent with every request once it is known that the cluster asks for one.
        patience: seconds for one answer.

    Raises:
        StartError: the URL is none.
    """

    def __init__(self, url: str, token: Token | None = None, *, patience: float = PATIENCE) -> None:
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            expected, mend = "the URL of a cluster's dashboard", "write for example http://127.0.0.1:8265"
            raise StartError(explain("--address", expected=expected, received=repr(url), mend=mend))
        self.host = parts.hostname
        self.encrypted = parts.scheme == "https"
        self.port = port or (443 if self.encrypted else 8265)
        self.url = f"{parts.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"
        self.token = token
        self._patience = patience
        self._path = parts.path.rstrip("/")

    def ask(self, method: str, path: str, body: bytes | None = None, *, kind: str = "application/json") -> Answer:
        """Send one request.

        Raises:
            StartError: nobody answers there, or not in time.
        """
        until = time.monotonic() + self._patience
        headers = {"Content-Type": kind, "User-Agent": "rankfire"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token.value}"
        connection = self._connection()
        try:
            connection.request(method, f"{self._path}{path}", body, headers)
            response = connection.getresponse()
            return Answer(response.status, self._read(response, connection, until))
        except (OSError, http.client.HTTPException) as error:
            raise StartError(
                explain(
                    f"cluster at {self.url}",
                    expected="the dashboard of a Ray cluster",
                    received=_words(error),
                    mend="see that the cluster runs (its head prints this address), that this machine may reach it, or "
                    "tunnel to it: ssh -L 8265:127.0.0.1:8265 HEAD",
                )
            ) from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self.encrypted:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self.host, self.port, timeout=self._patience, context=context)
        return http.client.HTTPConnection(self.host, self.port, timeout=self._patience)

    def _read(self, response: http.client.HTTPResponse, connection: http.client.HTTPConnection, until: float) -> bytes:
        """Read the body; one that trickles is cut off, not waited for."""
        pieces: list[bytes] = []
        size = 0
        while True:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError("no whole answer in time")
            if connection.sock is not None:
                connection.sock.settimeout(left)
            piece = response.read1(PIECE)
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)
            size += len(piece)
            if size > MOST:
                raise OSError(f"an answer of more than {MOST >> 20} MiB")


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no whole answer in time"
    return f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
