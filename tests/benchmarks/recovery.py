"""From a fault of a random rank until training is ahead of where it was: ours, Ray Train's, torchrun's.

Run `python tests/benchmarks/recovery.py` (`--quick`: a minute, fewer faults and sides). All train the same perceptron
(`_mlp.py`), steps of about 10 ms. A rank is struck from outside by SIGKILL, at a random moment, again and again in one
training, always when it is steady and its spares are there. Then by SIGSTOP, where a hang is what is found only by
waiting: `hang_timeout` of ours, and the time limit of the peers' collectives, are 5 s.
- ours: snapshots in memory every 10 iterations, as often as the peers save, and no checkpoint; with a spare; with none
  (a new process); three ranks that go on as two at once, until a third has started. Once more with as many snapshots
  as by default, for which a hundredth of the time is spent.
- Ray Train v2: `FailureConfig(max_failures=-1)`, rank 0 reports a checkpoint every 10 iterations; once more with a poll
  of 50 ms instead of its 2 s.
- torchrun: `--max-restarts`, rank 0 saves every 10 iterations, a restart begins with that.
"ahead" is the time until an iteration was completed on all ranks that had never been; "again" until any was. "lost" are
iterations that had been completed on all ranks and were computed again. Times are those of the machine's one clock.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import _faults, _report
from tests.benchmarks._faults import Side, rankfire
from tests.benchmarks._trail import Recovery

HANG = 5  # s


class Case(NamedTuple):
    """What is measured of one side."""

    side: Side
    how: signal.Signals
    faults: int
    quick: bool = False  # belongs to the short run too


def cases(kills: int, stops: int) -> list[Case]:
    spare = {"count": 2, "spares": 1, "cpus": 0.5}
    fewer = {"count": 3, "min": 2, "cpus": 0.5}
    often = {"snapshots": {"iterations": 10}}
    hang = {**often, "hang_timeout": HANG}
    kill, stop = signal.SIGKILL, signal.SIGSTOP
    return [
        Case(rankfire("rankfire, a spare", workers=spare, recovery=often), kill, kills, quick=True),
        Case(rankfire("rankfire, a new process", workers={"count": 2, "cpus": 0.5}, recovery=often), kill, kills),
        Case(rankfire("rankfire, three ranks, then two", workers=fewer, recovery=often), kill, kills),
        Case(rankfire("rankfire, a spare, default snapshots", workers=spare), kill, kills),
        Case(_faults.torchrun(), kill, kills, quick=True),
        Case(_faults.ray_train(), kill, kills, quick=True),
        Case(_faults.ray_train(poll=0.05), kill, kills),
        Case(rankfire("rankfire, a spare", workers=spare, recovery=hang), stop, stops),
        Case(_faults.torchrun(timeout=HANG), stop, stops),
        Case(_faults.ray_train(timeout=HANG), stop, stops),
    ]


def measured(root: Path, number: int, case: Case) -> list[Recovery]:
    """The recoveries of one case; what went wrong is told, and the next case has its turn."""
    found: list[Recovery] = []
    try:
        found.extend(_faults.recoveries(root, f"case {number}", case.side, faults=case.faults, seed=1, how=case.how))
    except TimeoutError as error:
        print(f"{error}\n")
    return found


def row(case: Case, found: Sequence[Recovery], first: float) -> tuple[str, ...]:
    """A line of the table."""
    faults = f"{len(found)} of {case.faults}"
    if not found:
        return (case.side.name, faults, "", "", "", "")
    again, ahead, lost = zip(*found, strict=True)
    middle = statistics.median(ahead)
    ratio = f"1/{middle / first:.1f}" if middle > first else f"{first / middle:.1f}"
    return (case.side.name, faults, _report.spread(ahead), ratio, f"{statistics.median(again):.2f}",
            _report.spread(lost, "{:.0f}"))  # fmt: skip


def main(kills: int, stops: int, *, quick: bool, only: str) -> None:
    print(__doc__)
    print(f"machine: {_report.machine()}\n")
    chosen = [case for case in cases(kills, stops) if only in case.side.name and (case.quick or not quick)]
    with _report.private_folder() as root:
        found = [(case, measured(root, number, case)) for number, case in enumerate(chosen)]
    for how in dict.fromkeys(case.how for case in chosen):
        results = [(case, recovered) for case, recovered in found if case.how == how]
        first = next((statistics.median(one.ahead for one in recovered) for _, recovered in results if recovered), 0.0)
        header = (f"{how.name} of a rank", "recovered", "ahead, s: p50 (all)", "first row / this", "again, s: p50",
                  "iterations lost: p50 (all)")  # fmt: skip
        _report.table([header, *(row(case, recovered, first) for case, recovered in results)])
        print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="From a fault to the next new iteration, ours and the peers'.")
    parser.add_argument("--kills", type=int, default=7, help="of each side")
    parser.add_argument("--stops", type=int, default=3, help="of each side")
    parser.add_argument("--only", default="", help="sides whose name has this in it")
    parser.add_argument("--quick", action="store_true", help="two kills, and only a spare against the peers' defaults")
    arguments = parser.parse_args()
    kills = 2 if arguments.quick else arguments.kills
    main(kills, arguments.stops, quick=arguments.quick, only=arguments.only)
