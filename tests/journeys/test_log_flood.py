"""Ranks that print without end: their lines go to Ray's files and through the driver, in whose memory none stays.

Slow, since Ray carries line by line: it runs with `RANKFIRE_FAULTS=all`, as in `make chaos`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LINES = 60_000  # of each rank
LINE = 500  # characters
RANKS = 2
MOST = 20 << 20  # bytes by which the driver may grow: less than one rank prints

JOB = """\
run: flood
program: flood:build
handlers: flood:attach
train: {{max_epochs: 1}}
workers: {ranks}
storage: {storage}
"""

FLOOD = f"""\
import json, pathlib, re
from workers import Events
from tests.journeys import programs

def build(worker):
    program = programs.linear(worker)
    program.engines["trainer"].on(Events.ITERATION_COMPLETED(once=2))(flood)
    return program

def flood(engine):
    for number in range({LINES}):
        print(number, "x" * {LINE})

def most():
    text = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", text)[1]) << 10

def attach(orchestrator):
    seen = {{}}

    @orchestrator.on(Events.ITERATION_COMPLETED(once=1))
    def before():
        seen["before"] = most()

    @orchestrator.on(Events.COMPLETED)
    def after():
        seen["after"] = most()
        pathlib.Path("seen.json").write_text(json.dumps(seen))
"""


@pytest.mark.skipif(os.environ.get("RANKFIRE_FAULTS") != "all", reason="RANKFIRE_FAULTS is not all: it takes a minute")
@pytest.mark.timeout(600)
def test_a_flood_of_log_lines_fills_no_memory_of_the_driver(tmp_path: Path) -> None:
    (tmp_path / "flood.py").write_text(FLOOD)
    (tmp_path / "job.yaml").write_text(JOB.format(ranks=RANKS, storage=tmp_path / "runs"))
    ray_folder = Path(os.environ["RAY_TMPDIR"]) / "flood"
    ray_folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "run", "job.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{os.getcwd()}:{tmp_path}", "RAY_TMPDIR": str(ray_folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    files = ray_folder.glob("ray/session_2*/logs/worker-*.out")
    printed = sum(line.endswith("x") for file in files for line in file.read_text().splitlines())
    assert printed == RANKS * LINES
    seen = json.loads((tmp_path / "seen.json").read_text())
    print(f"the driver grew by {(seen['after'] - seen['before']) >> 10} kB")
    assert seen["after"] - seen["before"] < MOST < LINES * LINE
