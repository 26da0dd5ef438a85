"""A real Ray head of a test's own: `ray start --head` with a token, on loopback alone; ended by its processes' ids.

Nothing here calls `ray stop`, which would end every Ray of the machine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.waiting import wait_until

__all__ = ["Head", "free_ports", "ray_head"]

START = 120.0  # seconds for a head to be up, on a machine that is busy
END = 20.0


@dataclass(frozen=True)
class Head:
    """A head that is up.

    Args:
        url: of its dashboard.
        address: `host:port` of its GCS.
        token_file: the file with its token, 0600; None: it lets everybody in.
        environment: of whoever talks to it.
        process: of `ray start --block`.
    """

    url: str
    address: str
    token_file: Path | None
    environment: dict[str, str]
    process: subprocess.Popen[bytes]


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on at the moment."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [listener.getsockname()[1] for listener in listeners]


@contextlib.contextmanager
def ray_head(*, token: bool = True, cpus: int = 2) -> Iterator[Head]:
    """Start a head, and end it and all its processes afterwards."""
    home = Path(tempfile.mkdtemp(prefix="rh", dir="/tmp"))  # short: sockets below it may have 107 bytes
    token_file = None
    if token:
        token_file = home / "token"
        token_file.touch(mode=0o600)
        token_file.write_text(secrets.token_hex(32))
    environment = _environment(home, token_file)
    dashboard, agent, client = free_ports(3)
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--port=0"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--include-dashboard=true"),
                *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
                *(f"--temp-dir={home / 't'}", f"--num-cpus={cpus}", "--object-store-memory=100000000"),
                "--disable-usage-stats",
            ],
            env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=home, start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{dashboard}"
    try:
        wait_until(lambda: process.poll() is not None or _answers(url), START, "the dashboard to answer", 0.2)
        cluster = home / "t" / "ray_current_cluster"
        wait_until(lambda: process.poll() is not None or cluster.exists(), START, "the head to be up", 0.2)
        assert process.poll() is None, (home / "log").read_text()
        yield Head(url, cluster.read_text().strip(), token_file, environment, process)
    finally:
        _end(process)
        shutil.rmtree(home, ignore_errors=True)


def _environment(home: Path, token_file: Path | None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[1]),  # where Rankfire is, as if it were installed there
        "RAY_AUTH_MODE": "disabled" if token_file is None else "token",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else 127.0.0.1 is replaced by the address of a network card
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "1",
    }
    return kept | own | ({} if token_file is None else {"RAY_AUTH_TOKEN_PATH": str(token_file)})


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/api/authentication_mode", timeout=5):
            return True
    except (OSError, urllib.error.URLError):
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        leader = psutil.Process(process.pid)
        family = [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END)
    _, alive = psutil.wait_procs(family, timeout=5)
    for left in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()
    process.wait()
    psutil.wait_procs(family, timeout=5)
