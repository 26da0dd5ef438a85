"""What the benchmarks share: a private place for the processes of each measurement, the machine's line, the table.

A measurement runs in a process of its own, which this module starts and ends with everything that it started.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from tests.leftovers import MARK, session_processes

TOP = Path(__file__).resolve().parents[2]
RAY = {  # how every measurement starts its Ray; more CPUs than some machines have, so that all ranks find a place
    "num_cpus": 4,
    "include_dashboard": False,
    "object_store_memory": 80 << 20,
    "log_to_driver": False,
    "configure_logging": False,
}


@contextmanager
def private_folder() -> Iterator[Path]:
    """A short folder (Ray puts sockets there) and an environment in it, for this process and all its children.

    Whoever is told to end by SIGTERM, as by timeout(1), ends what it has started before.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="rb", dir="/tmp", ignore_cleanup_errors=True) as name:
        root = Path(name)
        for part in ("home", "tmp", "ray"):
            (root / part).mkdir()
        os.environ.update(
            {
                MARK: uuid.uuid4().hex,
                "HOME": str(root / "home"),
                "TMPDIR": str(root / "tmp"),
                "RAY_TMPDIR": str(root / "ray"),
                "RAY_AUTH_MODE": "disabled",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_worker_niceness": "0",  # its default is 15: on a busy machine, torchrun's ranks would go first
                "RAY_TRAIN_V2_ENABLED": "1",
                "PYTHONPATH": str(TOP),
            }
        )
        os.environ.pop("RAY_ADDRESS", None)
        yield root


def measure(root: Path, name: str, command: Sequence[str], *, timeout: float = 170.0, **environment: str) -> Path:
    """Run a command to its end, in a folder of its own below `root`, which is appended to it; returns the folder."""
    with started(root, name, command, **environment) as (process, folder):
        if status := process.wait(timeout):
            raise SystemExit(f"{name}: ended with {status}\n{tail(folder)}")
    return folder


@contextmanager
def started(
    root: Path, name: str, command: Sequence[str], **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a command as `measure` does, and meanwhile what is inside; then end it with everything that it started."""
    folder = root / name.replace(" ", "-")
    folder.mkdir()
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, *command, str(folder)],
            env={**os.environ, **environment},
            cwd=TOP,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process, folder
        finally:
            if process.poll() is None:
                process.terminate()
            _end_all(root)
            process.wait()


def tail(folder: Path) -> str:
    """The end of what a command printed."""
    return (folder / "log").read_text(errors="replace")[-4000:]


def note(folder: Path | str, name: str, value: Any) -> None:
    """Leave a result of a measurement in its folder; `read` finds it there."""
    (Path(folder) / f"{name}.json").write_text(json.dumps(value))


def read(folder: Path, pattern: str) -> list[Any]:
    """The results that match, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{pattern}.json"))]


def machine() -> str:
    """Where and with what it was measured."""
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "rankfire"))
    python = sys.version.split()[0]
    return f"{os.cpu_count()} cores, load average at the start {load}; Python {python}, {packages}; ranks not niced"


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """The median, and all values it comes from."""
    return f"{form.format(statistics.median(values))} ({', '.join(form.format(value) for value in sorted(values))})"


def table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows, the first of them the header, in columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def verdict(met: bool) -> str:
    """A word for the last column; a benchmark never fails on a time."""
    return "met" if met else "MISSED"


def _end_all(root: Path) -> None:
    """Let what was started end, then kill it."""
    _, alive = psutil.wait_procs(session_processes(root / "tmp"), timeout=10)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=5)
