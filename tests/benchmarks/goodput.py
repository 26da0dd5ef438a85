"""What is left of training when a random rank is killed every 10 seconds: ours, Ray Train's, torchrun's.

Run `python tests/benchmarks/goodput.py` (`--seconds 120`; `--quick`: 20 s, ours and torchrun). Two ranks train the
perceptron of `_mlp.py`, steps of about 10 ms. Ours has one spare, which is replaced in the background, and snapshots
as by default; once more with one every 10 iterations. Peers save every 10 iterations and begin with that. The sides run
one after the other under the same schedule of kills: same seed, same moments, same ranks. A kill whose turn comes while
a side has no ranks is left out, to its advantage.
Goodput: completed iterations, times the undisturbed step time, by the wall time. Completed is what is completed on all
ranks, once: what was lost and computed again does not count twice. The undisturbed step time is the side's own, in the
same training before the first kill, with all that it does in passing (snapshots, checkpoints, reports). "of a bare
loop" are its iterations against those that an undisturbed loop under torchrun, without checkpoints, makes meanwhile.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import _faults, _report
from tests.benchmarks._faults import Side, Training
from tests.benchmarks._trail import completions

EVERY = 10.0  # s between two kills


class Goodput(NamedTuple):
    """What one training made."""

    kills: int
    undisturbed: float  # s a step
    iterations: int  # while it was disturbed
    seconds: float

    @property
    def share(self) -> float:
        return self.iterations * self.undisturbed / self.seconds


def reached(one: Training, at: float) -> int:
    """The last iteration that all ranks had completed by then."""
    return max(iteration for (_, iteration), done in completions(one.trails.steps).items() if done <= at)


def goodput(one: Training, *, seconds: float, quiet: float, seed: int) -> Goodput:
    """Leave a training alone for a while, then kill a rank every ten seconds."""
    chance = random.Random(seed)
    one.steady()
    began = time.monotonic()
    time.sleep(quiet)
    first, kills, turns = time.monotonic(), 0, 0
    while turns * EVERY < seconds:
        _sleep_until(first + turns * EVERY)
        kills += one.strike(signal.SIGKILL, chance.random()) is not None
        turns += 1
    _sleep_until(first + seconds)
    ended = time.monotonic()
    if one.ended():
        print(f"{one.side.name}: ended under {kills} kills\n{_report.tail(one.folder)}")
    one.trails.look()
    undisturbed = (first - began) / (reached(one, first) - reached(one, began))
    return Goodput(kills, undisturbed, reached(one, ended) - reached(one, first), ended - first)


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def main(seconds: float, quiet: float, seed: int, sides: list[Side]) -> None:
    print(__doc__)
    print(f"machine: {_report.machine()}\n")
    found: dict[str, Goodput] = {}
    with _report.private_folder() as root:
        with _faults.training(root, "bare", _faults.torchrun(every=0)) as one:
            one.steady()
            began, _ = time.monotonic(), time.sleep(quiet)
            one.trails.look()
            bare = quiet / (reached(one, began + quiet) - reached(one, began))
        for number, side in enumerate(sides):
            with _faults.training(root, f"side {number}", side) as one:
                found[side.name] = goodput(one, seconds=seconds, quiet=quiet, seed=seed)
    rows = [("", "kills", "iterations", "undisturbed step, ms", "goodput", "of a bare loop", "ours / theirs")]
    ours = next(iter(found.values()))
    for name, one in found.items():
        ratio = "" if one is ours else f"{ours.iterations / max(1, one.iterations):.1f}"
        rows.append((name, str(one.kills), str(one.iterations), f"{one.undisturbed * 1e3:.1f}", f"{one.share:.3f}",
                     f"{one.iterations * bare / one.seconds:.3f}", ratio))  # fmt: skip
    _report.table(rows)
    print(f"\na bare loop's step: {bare * 1e3:.1f} ms; ours / theirs: iterations; {seconds:g} s, seed {seed}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Goodput under a kill every ten seconds, ours and the peers'.")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="20 s, ours and torchrun")
    parser.add_argument("--only", default="", help="sides whose name has this in it")
    arguments = parser.parse_args()
    spare, often = {"count": 2, "spares": 1, "cpus": 0.5}, {"snapshots": {"iterations": 10}}
    sides = [_faults.rankfire("rankfire", workers=spare), _faults.torchrun()]
    if not arguments.quick:
        sides.insert(1, _faults.rankfire("rankfire, snapshots every 10", workers=spare, recovery=often))
        sides += [_faults.ray_train(), _faults.ray_train(poll=0.05)]
    main(
        20 if arguments.quick else arguments.seconds,
        5 if arguments.quick else EVERY,
        arguments.seed,
        [side for side in sides if arguments.only in side.name],
    )
