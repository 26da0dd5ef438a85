"""Whole runs, each in a process of its own that may crash: a helper has imported everything once, and forks for each.

`forks()` is the test's side. The helper is `python -m tests.orchestrator.crashing`: it reads one JSON object a line,
and answers each with how the process ended, or that it was stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["Ended", "Forks", "forks"]

LIMIT = 60.0  # seconds for one run, which takes less than one
TOP = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a run's process ended.

    Args:
        pid: of the process.
        code: its exit code, or minus the signal that killed it; None if it was stopped.
        text: what it printed.
        fired: the failpoints that fired, as their trace tells.
    """

    pid: int
    code: int | None
    text: str
    fired: tuple[str, ...]


class Forks:
    """The test's side of the helper."""

    def __init__(self, helper: subprocess.Popen[str], folder: Path) -> None:
        self._helper = helper
        self._folder = folder
        self._number = 0

    def run(
        self, job: Mapping[str, Any], failpoints: str = "", *, ttl: float = 0.4, environment: Mapping[str, str]
    ) -> Ended:
        """Run a job file as the command does, until its process ends or is stopped.

        Args:
            job: the job file.
            failpoints: what is armed in the process.
            ttl: of the run's lease, in seconds.
            environment: further variables of the process.
        """
        self._number += 1
        place = self._folder / str(self._number)
        place.mkdir()
        (place / "job.yaml").write_text(json.dumps(job))  # JSON is YAML
        order = {"place": str(place), "failpoints": failpoints, "ttl": ttl, "environment": dict(environment)}
        return self._ask(order, place)

    def go_on(self, stopped: Ended) -> Ended:
        """Let a stopped process go on to its end."""
        return self._ask({"pid": stopped.pid}, self._folder / str(self._number))

    def _ask(self, order: Mapping[str, Any], place: Path) -> Ended:
        helper = self._helper
        assert helper.stdin is not None
        assert helper.stdout is not None
        print(json.dumps(order), file=helper.stdin, flush=True)
        ready, _, _ = select.select([helper.stdout], [], [], LIMIT)
        answer = helper.stdout.readline() if ready else ""
        assert answer, f"no answer within {LIMIT:g} s to {order}; its process printed\n{_text(place / 'output')}"
        told = json.loads(answer)
        place = Path(told["place"])
        fired = tuple(_text(place / "trace").splitlines())
        return Ended(pid=told["pid"], code=told["code"], text=_text(place / "output"), fired=fired)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@contextlib.contextmanager
def forks(folder: Path) -> Iterator[Forks]:
    """The helper, as long as the block lasts; it and all that it has forked are killed at the end."""
    helper = subprocess.Popen(
        [sys.executable, "-m", "tests.orchestrator.crashing"],
        cwd=TOP,
        env={**os.environ, "PYTHONPATH": str(TOP), "OMP_NUM_THREADS": "1"},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with helper:
        try:
            yield Forks(helper, folder)
        finally:
            os.killpg(helper.pid, signal.SIGKILL)


# ---------------------------------------------------------------- the helper
def serve() -> None:
    """Fork for each order, and wait until the process has ended or stopped."""
    _import_all()
    places: dict[int, str] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "pid" in order:
            pid = order["pid"]
            os.kill(pid, signal.SIGCONT)
        elif (pid := os.fork()) == 0:
            _be_a_run(order)
        else:
            places[pid] = order["place"]
        _, status = os.waitpid(pid, os.WUNTRACED)
        code = None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)
        print(json.dumps({"pid": pid, "code": code, "place": places[pid]}), flush=True)


def _import_all() -> None:
    import torch

    for name in (
        "aiobotocore.session",
        "rich.table",
        "s3fs",
        "torch",
        "torch._dynamo",
        "orchestrator.checkpoints.plan",
        "orchestrator.local",
        "orchestrator.orchestrator",
        "orchestrator.reduce",
        "tests.orchestrator.linear",
        "workers.checkpointing",
        "workers.saving",
    ):
        import_module(name)
    torch.set_num_threads(1)


def _be_a_run(order: Mapping[str, Any]) -> None:
    """In the forked process: run the job file, and end without a way back."""
    code = 99
    try:
        place = Path(order["place"])
        output = os.open(place / "output", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(order["environment"])
        os.environ["RANKFIRE_FAILPOINTS_TRACE"] = str(place / "trace")
        from orchestrator.cli.main import exit_code
        from orchestrator.lease import Lease
        from workers import failpoints

        Lease.__init__.__kwdefaults__["ttl"] = order["ttl"]
        failpoints.arm(order["failpoints"])
        code = exit_code(["run", str(place / "job.yaml")])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
