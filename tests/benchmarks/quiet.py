"""What being ready for faults costs while there are none: our normal run, one without snapshots, a bare loop.

Run `python tests/benchmarks/quiet.py` (`--quick`: a minute). Two ranks train the perceptron of `_mlp.py`, steps of
about 10 ms, 7 MB of state; no handlers at the driver, no checkpoints. Normal: snapshots as often as the run chooses,
heartbeats, streams. Without: `recovery: {snapshots: off}`. Peer: the same model, step and trail in a plain DDP loop
under torchrun. Runs are taken in turns, in rounds; a run's step time is the median of the means of blocks of 100 steps
(each holds its share of snapshots) after a warm-up, on all ranks. Beside it the CPU time that a rank takes for a step,
all its threads, which is steadier than the clock where other work shares the cores.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import _faults, _report
from tests.benchmarks._trail import Step, Trails, completions

BLOCK = 100  # steps
TARGET = 1.01  # of the time of a step without snapshots
WORKERS = {"count": 2, "cpus": 0.5}


class Cost(NamedTuple):
    """Of a step, ms."""

    wall: float
    cpu: float


def cost(steps: Sequence[Step]) -> Cost:
    """The cost of a step in one run, without its first block."""
    done = {iteration: at for (_, iteration), at in completions(steps).items()}
    marks = range(BLOCK, max(done) + 1, BLOCK)
    blocks = [(done[mark] - done[mark - BLOCK]) / BLOCK for mark in marks[1:]]
    cpu = {(step.rank, step.iteration): step.cpu for step in steps}
    ranks = {step.rank for step in steps}
    taken = [(cpu[rank, marks[-1]] - cpu[rank, marks[0]]) / (marks[-1] - marks[0]) for rank in ranks]
    return Cost(wall=statistics.median(blocks) * 1e3, cpu=statistics.mean(taken) * 1e3)


def main(rounds: int, iterations: int) -> None:
    print(__doc__)
    print(f"machine: {_report.machine()}\n")
    sides = [
        _faults.rankfire("rankfire", iterations=iterations, workers=WORKERS),
        _faults.rankfire(
            "rankfire, no snapshots", iterations=iterations, workers=WORKERS, recovery={"snapshots": "off"}
        ),
        _faults.torchrun(every=0, iterations=iterations),
    ]
    found: dict[str, list[Cost]] = {side.name: [] for side in sides}
    with _report.private_folder() as root:
        for turn in range(rounds):
            for number, side in enumerate(sides):
                environment = {"OMP_NUM_THREADS": "1", **side.environment}
                folder = _report.measure(root, f"side {number} {turn}", side.command, **environment)
                found[side.name].append(cost(Trails(folder).look().steps))
    normal = found["rankfire"]
    rows = [("", "step, ms: median (all)", "CPU of a rank, ms a step", "normal / this: step", "CPU")]
    for name, costs in found.items():
        ratios = [
            f"{statistics.median(getattr(a, what) / getattr(b, what) for a, b in zip(normal, costs, strict=True)):.3f}"
            for what in ("wall", "cpu")
        ]
        walls, cpus = zip(*costs, strict=True)
        rows.append((name, _report.spread(walls), _report.spread(cpus), *(ratios if costs is not normal else ["", ""])))
    _report.table(rows)
    without = found["rankfire, no snapshots"]
    share = statistics.median(a.cpu / b.cpu for a, b in zip(normal, without, strict=True))
    told = _report.verdict(share <= TARGET)
    print(f"\nratios are medians of those of the rounds; CPU with snapshots / without: target ≤ {TARGET}: {told}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What being ready for faults costs while there are none.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--quick", action="store_true", help="one round of 500 iterations")
    arguments = parser.parse_args()
    if arguments.quick:
        main(1, 500)
    else:
        main(arguments.rounds, arguments.iterations)
