"""How long the light commands take, each in a process of its own: help, validate, list of 1,000 runs, render, submit.

Beside them stands what Python itself takes to start, and `ray --version`, the peer's lightest command. `submit` goes to
a Ray cluster with a token on this machine, until it says that it is accepted; beside it `ray job submit --no-wait` of
the same folder. What is submitted ends at once. Also: ten thousand hostile job files, and the slowest of them. Run:
`PYTHONPATH=. python tests/benchmarks/cli.py`.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from orchestrator.errors import SpecError
from orchestrator.specfile import load_spec
from tests.ray_head import ray_head
from tests.security.hostile import hostile

TOP = Path(__file__).parents[2]
TIMES = int(os.environ.get("RANKFIRE_TIMES", "7"))
SPECS = int(os.environ.get("RANKFIRE_HOSTILE", "10000"))
RUNS = 1000
TARGETS = {"help": 0.3, "validate": 0.5, "list of 1,000 runs": 1.0, "render slurm": 0.5, "submit": 1.0}
JOB = "examples/digits/job.yaml"


def runs_in(folder: Path) -> None:
    """A thousand runs, each with a journal of some size and a lease, as real ones have them."""
    for number in range(RUNS):
        home = folder / f"run-{number:04d}"
        (home / "lease").mkdir(parents=True)
        owner = {"who": "x", "host": "h", "pid": 1, "machine": "m", "born": "1", "since": 0.0, "ttl": 15.0, "beat": 9}
        (home / "lease" / "00000001.json").write_text(json.dumps({**owner, "released": True}))
        line = {"time": 1e9 + number, "generation": 0, "epoch": 1, "iteration": 2, "metrics": {"loss": 0.5}}
        lines = [json.dumps({"event": "EPOCH_COMPLETED", **line})] * 100 + [
            json.dumps({"event": "RUN_COMPLETED", **line})
        ]
        (home / "journal.jsonl").write_text("\n".join(lines) + "\n")


def seconds(*command: str, cwd: Path = TOP, **environment: str) -> tuple[float, float]:
    """Median time of a command from its start to its end, and of the processor alone: a busy machine tells by both.

    `{}` in the command is the number of the turn.
    """
    environment = {**os.environ, "PYTHONPATH": str(TOP), **environment}
    taken, used = [], []
    for turn in range(TIMES):
        words = [word.replace("{}", str(turn)) for word in command]
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(words, cwd=cwd, env=environment, check=True, capture_output=True)
        taken.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(taken), statistics.median(used)


def submissions(project: Path) -> dict[str, tuple[float, float]]:
    """What it takes until a cluster has accepted the digits job; by us, and by the peer."""
    shutil.copytree(TOP / "examples" / "digits", project / "examples" / "digits")
    ray = str(Path(sys.executable).with_name("ray"))
    with ray_head() as head:
        ours = [sys.executable, "-m", "orchestrator", "submit", JOB, "--address", head.url, "--set", "run=d{}"]
        theirs = [ray, "job", "submit", "--no-wait", "--address", head.url, "--working-dir", ".", "--", "true"]
        return {
            "submit": seconds(*ours, "--python", "true", cwd=project, **head.environment),
            "ray job submit": seconds(*theirs, cwd=project, **head.environment),
        }


def hostile_specs(folder: Path) -> tuple[int, float, int]:
    """How many of the hostile job files were refused, and the slowest one: its time and its seed."""
    refused, slowest, worst = 0, 0.0, -1
    for seed in range(SPECS):
        (folder / "job.yaml").write_bytes(hostile(seed, folder).encode("utf-8", errors="surrogatepass"))
        began = time.process_time()
        try:
            load_spec(folder / "job.yaml", roots=[str(folder)])
        except SpecError:
            refused += 1
        if (taken := time.process_time() - began) > slowest:
            slowest, worst = taken, seed
    return refused, slowest, worst


def main() -> None:
    """Measure, and print a table."""
    rankfire = [sys.executable, "-m", "orchestrator"]
    with tempfile.TemporaryDirectory() as folder:
        runs_in(Path(folder) / "runs")
        rows = {
            "python -c pass": seconds(sys.executable, "-c", "pass"),
            "help": seconds(*rankfire, "--help"),
            "validate": seconds(*rankfire, "validate", JOB),
            "list of 1,000 runs": seconds(*rankfire, "list", "--storage", f"{folder}/runs"),
            "render slurm": seconds(*rankfire, "render", "slurm", JOB),
            "ray --version": seconds(str(Path(sys.executable).with_name("ray")), "--version"),
            **submissions(Path(folder) / "project"),
        }
        print(f"median of {TIMES}, seconds: in all, of the processor")
        for name, (taken, used) in rows.items():
            target = f"  (target {TARGETS[name]:g})" if name in TARGETS else ""
            print(f"  {name:<20} {taken:6.3f} {used:6.3f}{target}")
        ratio = rows["submit"][0] / rows["ray job submit"][0]
        print(f"submit / ray job submit: {ratio:.2f}")
        refused, slowest, worst = hostile_specs(Path(folder))
    slow = f"slowest {slowest:.2f} s of the processor (seed {worst}; target 1)"
    print(f"{SPECS} hostile job files: {refused} refused, {slow}")


if __name__ == "__main__":
    main()
