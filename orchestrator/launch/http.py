"""Words with a cluster's dashboard over HTTP: bounded in time and size, no redirects, and errors that say what to do.

The token goes nowhere but to the host that the user named. Called by `jobs.py`; nothing here imports Ray.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import json
import re
import socket
import ssl
import time
import urllib.parse
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import StartError, explain
from orchestrator.launch.access import Token

__all__ = ["Answer", "Dashboard", "printable"]

PATIENCE = 10.0  # seconds for one answer, from the first byte to the last
MOST = 64 << 20  # bytes of an answer
PIECE = 1 << 16
_PLAIN = re.compile(r"[!-~]*")  # a path as it goes over the line


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the status, and the body."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON; None if it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    def text(self) -> str:
        """The body's last line, cut short: servers answer with whole tracebacks."""
        lines = self.body.decode(errors="replace").strip().splitlines() or [""]
        return printable(lines[-1][:300])


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
        parts = _parts(url)
        self.host = parts.hostname or ""
        self.encrypted = parts.scheme == "https"
        self.port = parts.port or (443 if self.encrypted else 8265)
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
        connection.response_class = functools.partial(_response, until)  # type: ignore[assignment]
        try:
            connection.request(method, f"{self._path}{path}", body, headers)
            response = connection.getresponse()
            return Answer(response.status, self._read(response))
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

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        """Read the body, as far as there is room for it."""
        pieces: list[bytes] = []
        size = 0
        while piece := response.read1(PIECE):
            pieces.append(piece)
            size += len(piece)
            if size > MOST:
                raise OSError(f"an answer of more than {MOST >> 20} MiB")
        return b"".join(pieces)


class _Timed(io.RawIOBase):
    """What a socket receives, until an answer must be whole: one that trickles is cut off, be it in its headers.

    Args:
        sock: receives.
        until: the time, by the monotonic clock.
    """

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)  # which keeps the socket open after its connection has let go
        self._until = until

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Receive something, for as long as is left."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("no whole answer in time")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        """Let go of the socket."""
        self._raw.close()
        super().close()


def _response(until: float, sock: socket.socket, *args: Any, **options: Any) -> http.client.HTTPResponse:
    """An answer that is read from a socket within its time."""
    response = http.client.HTTPResponse(sock, *args, **options)
    response.fp.close()
    response.fp = io.BufferedReader(_Timed(sock, until))
    return response


def _parts(url: str) -> urllib.parse.SplitResult:
    """Take a URL apart.

    Raises:
        StartError: it is none of a dashboard, or none that could be asked.
    """
    with contextlib.suppress(ValueError):  # of brackets without an end, of ports, and of names that no DNS has
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        (parts.hostname or "").encode("idna")
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        if known and _PLAIN.fullmatch(parts.path) and url.isprintable() and " " not in url:
            return parts
    expected, mend = "the URL of a cluster's dashboard", "write for example http://127.0.0.1:8265"
    raise StartError(explain("--address", expected=expected, received=repr(url), mend=mend))


def printable(text: str) -> str:
    """What a server said, so that it moves no cursor of a terminal.

    Example:
        >>> printable("a\\x1b[2Jb")
        'a\\\\x1b[2Jb'
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no whole answer in time"
    return printable(f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"[:300])
