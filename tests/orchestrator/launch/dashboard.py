"""A dashboard that answers as a test says: Ray's Jobs API in memory, over real HTTP on loopback."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Cluster", "serving"]


class Cluster:
    """A cluster as its dashboard shows it.

    Args:
        mode: `token` or `disabled`.
        token: that it wants.
        version: of Ray.
    """

    def __init__(self, mode: str = "token", token: str = "right", version: str = "2.60.0") -> None:
        self.mode = mode
        self.token = token
        self.version = version
        self.jobs: dict[str, dict[str, Any]] = {}
        self.packages: dict[str, bytes] = {}
        self.seen: list[tuple[str, str, str | None]] = []  # method, path, Authorization
        self.loses_answers = 0  # so many submissions are taken, and the line is cut before the answer
        self.trickles = threading.Event()  # set: a body comes a byte at a time, and never ends
        self.redirect: str | None = None
        self.begins = b""  # with which an answer that trickles begins, in place of status and headers
        self.says: dict[str, bytes] = {}  # path → a whole answer, as it goes over the line; REQUEST is what came

    def answer(self, method: str, path: str, body: bytes, shown: str | None) -> tuple[int, Any]:
        """Status and body of an answer."""
        if path == "/api/authentication_mode":
            return 200, {"authentication_mode": self.mode}
        if self.mode == "token" and shown != f"Bearer {self.token}":
            return (401 if shown is None else 403), "Unauthorized"
        if path == "/api/version":
            return 200, {"ray_version": self.version}
        if path.startswith("/api/packages/"):
            if method == "PUT":
                self.packages[path] = body
            return (200 if path in self.packages else 404), {}
        return self._job(method, path.removeprefix("/api/jobs/"), body)

    def _job(self, method: str, name: str, body: bytes) -> tuple[int, Any]:
        if method == "POST" and not name:
            given = json.loads(body)
            job = given["submission_id"]
            if job in self.jobs:
                return 500, f"Traceback\nValueError: Job with submission_id {job} already exists"
            self.jobs[job] = {**given, "status": "RUNNING"}
            return 200, {"submission_id": job}
        job, _, verb = name.partition("/")
        if not job:
            return 200, []
        if job not in self.jobs:
            return 404, "no such job"
        if verb == "stop":
            self.jobs[job]["status"] = "STOPPED"
        return 200, {"logs": "hello\n"} if verb == "logs" else self.jobs[job]


@contextlib.contextmanager
def serving(cluster: Cluster) -> Iterator[str]:
    """Serve a cluster's dashboard; gives its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            cluster.seen.append((self.command, self.path, self.headers.get("Authorization")))
            if self.path in cluster.says:
                self.close_connection = True
                self.wfile.write(cluster.says[self.path].replace(b"REQUEST", bytes(self.headers)))
                return
            if cluster.trickles.is_set() and cluster.begins:
                self.close_connection = True
                self.wfile.write(cluster.begins)
                self._trickle()
                return
            if cluster.redirect is not None:
                self.send_response(302)
                self.send_header("Location", cluster.redirect)
                self.end_headers()
                return
            status, said = cluster.answer(self.command, self.path, body, self.headers.get("Authorization"))
            if self.command == "POST" and self.path == "/api/jobs/" and cluster.loses_answers:
                cluster.loses_answers -= 1
                self.close_connection = True
                return
            content = json.dumps(said).encode() if not isinstance(said, str) else said.encode()
            self.send_response(status)
            if cluster.trickles.is_set():
                self.end_headers()
                self._trickle()
                return
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_GET  # noqa: N815

        def _trickle(self) -> None:
            with contextlib.suppress(OSError):
                while cluster.trickles.is_set():
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    threading.Event().wait(0.05)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        cluster.trickles.clear()
        server.shutdown()
        thread.join()
        server.server_close()
