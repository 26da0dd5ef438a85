"""A round trip of a gate: the last rank arrives → the driver's handler runs → all ranks go on.

Run `python tests/benchmarks/gates.py`. Ours: a blocking handler on every ITERATION_COMPLETED. Peer: Ray Train's
`ray.train.report()` in a loop, with a callback on `after_report`, at its default poll of 2 s and at shorter ones;
it waits until the report *before* was taken, ours until the handler of this very gate has returned. Two ranks, empty
step, empty handler. Times are those of the ranks' own clock, which the processes of one machine share.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import _report

RANKS = 2
WARM_UP = 20  # gates that are not counted; of the peer a tenth, at least one
TARGET = 5.0  # ms
POLLS = {"2": 5, "0.05": 60, "0.005": 200}  # Ray Train's poll, s (the first is its default): reports


def gated(worker: Any) -> Any:
    """A program that does nothing but come to gates, and notes when it comes and when it goes on."""
    from workers import Engine, Events, Program

    arrived: list[float] = []
    went_on: list[float] = []
    trainer = Engine(lambda engine, batch: None)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: arrived.append(time.monotonic()))
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: went_on.append(time.monotonic()))

    def keep(engine: Any) -> None:
        path = Path(worker.config["folder"], f"rank{worker.rank}.json")
        path.write_text(json.dumps({"arrived": arrived[:-1], "went on": went_on[1:]}))

    trainer.add_event_handler(Events.COMPLETED, keep)
    return Program(engines={"trainer": trainer})


def rankfire(folder: Path, gates: int) -> None:
    from orchestrator import Orchestrator
    from workers import Events

    orchestrator = Orchestrator(gated, workers=RANKS, config={"folder": str(folder)}, storage=folder / "runs")
    orchestrator.on(Events.ITERATION_COMPLETED, blocking=True)(lambda run: None)
    orchestrator.run(max_epochs=1, epoch_length=gates + 1)


def reporting(config: dict[str, Any]) -> None:
    """The loop of a Ray Train worker: it does nothing but report."""
    import ray.train

    arrived, went_on = [], []
    for number in range(config["reports"]):
        arrived.append(time.monotonic())
        ray.train.report({"number": number})
        went_on.append(time.monotonic())
    path = Path(config["folder"], f"rank{ray.train.get_context().get_world_rank()}.json")
    path.write_text(json.dumps({"arrived": arrived, "went on": went_on}))


def ray_train(folder: Path, reports: int) -> None:
    from ray.train import RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchTrainer

    class Handler(UserCallback):
        def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
            pass

    TorchTrainer(
        reporting,
        train_loop_config={"reports": reports, "folder": str(folder)},
        scaling_config=ScalingConfig(num_workers=RANKS),
        run_config=RunConfig(name="gates", storage_path=str(folder / "runs"), callbacks=[Handler()]),
    ).fit()


def child(side: str, count: int, folder: Path) -> None:
    import ray

    ray.init(**_report.RAY)
    {"rankfire": rankfire, "ray-train": ray_train}[side](folder, count)
    ray.shutdown()


def latencies(folder: Path, warm_up: int) -> list[float]:
    """Milliseconds from the last rank's arrival until all went on, gate by gate."""
    ranks = _report.read(folder, "rank*")
    assert len(ranks) == RANKS, f"expected the times of {RANKS} ranks, received {len(ranks)}"
    arrived = [max(times) for times in zip(*(rank["arrived"] for rank in ranks), strict=True)]
    went_on = [max(times) for times in zip(*(rank["went on"] for rank in ranks), strict=True)]
    return [(after - before) * 1e3 for before, after in zip(arrived, went_on, strict=True)][warm_up:]


def main(gates: int) -> None:
    print(__doc__)
    print(f"machine: {_report.machine()}\n")
    me, found = str(Path(__file__).resolve()), {}
    with _report.private_folder() as root:
        folder = _report.measure(root, "rankfire", [me, "--child", "rankfire", "--gates", str(gates + WARM_UP)])
        found["rankfire, blocking handler"] = latencies(folder, WARM_UP)
        for poll, reports in POLLS.items():
            warm_up = max(1, reports // 10)
            folder = _report.measure(
                root,
                f"ray-train {poll}",
                [me, "--child", "ray-train", "--gates", str(reports + warm_up)],
                RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=poll,
            )
            found[f"Ray Train report(), poll {poll} s"] = latencies(folder, warm_up)
    ours = statistics.median(next(iter(found.values())))
    rows = [("2 ranks", "gates", "p50, ms", "p90, ms", "ours / theirs", "target")]
    for name, values in found.items():
        middle, high = statistics.median(values), statistics.quantiles(values, n=10, method="inclusive")[-1]
        mine = name.startswith("rankfire")
        ratio = "" if mine else f"1/{middle / ours:.1f}"
        target = f"p50 ≤ {TARGET:g} ms: {_report.verdict(middle <= TARGET)}" if mine else ""
        rows.append((name, str(len(values)), f"{middle:.2f}", f"{high:.2f}", ratio, target))
    _report.table(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Round trip of a gate, ours and Ray Train's report().")
    parser.add_argument("--gates", type=int, default=400)
    parser.add_argument("--child", choices=["rankfire", "ray-train"], help=argparse.SUPPRESS)
    parser.add_argument("folder", type=Path, nargs="?", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.gates, arguments.folder)
    else:
        main(arguments.gates)
