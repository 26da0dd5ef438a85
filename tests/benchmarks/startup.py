"""From `run()` to the first completed step on both ranks, and from the last step to `run()` having returned.

Run `python tests/benchmarks/startup.py`. Ours: `Orchestrator.run()`. Peer: Ray Train's `TorchTrainer.fit()`, with its
defaults; to see what its poll has to do with it, once more with a poll of 50 ms instead of 2 s. Every
repetition is a fresh process that has imported its library and started a Ray of its own (neither is counted), taken
in turns. Same model, wrapped in DDP by each library; 150 steps on two ranks, each with a pause of 20 ms, so that the
end comes 3 s after the start: in the middle between two of the peer's polls, neither just before one nor just after.
Times are those of the machine's one monotonic clock; a step counts when it is completed on both ranks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import _report

RANKS = 2
STEPS, PAUSE = 150, 0.02  # s
FIRST_TARGET = 2.0  # times faster than the peer
END_TARGET = 0.5  # s
SIDES = {"rankfire": {}, "ray-train": {}, "ray-train-tuned": {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.05"}}


def build(worker: Any) -> Any:
    """Our program: a linear model; notes when each step was completed."""
    import torch

    from workers import Engine, Events, Program

    model = worker.prepare(torch.nn.Linear(32, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    done: list[float] = []

    def step(engine: Engine, batch: object) -> None:
        loss = model(torch.randn(16, 32)).square().mean()
        optimizer.zero_grad()
        worker.backward(loss)
        optimizer.step()
        time.sleep(PAUSE)

    def keep(engine: Engine) -> None:
        Path(worker.config["folder"], f"rank{worker.rank}.json").write_text(json.dumps(done))

    trainer = Engine(step)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: done.append(time.monotonic()))
    trainer.add_event_handler(Events.COMPLETED, keep)
    return Program(engines={"trainer": trainer}, state={"model": model, "optimizer": optimizer})


def loop(config: dict[str, Any]) -> None:
    """The same as a Ray Train worker's loop."""
    import ray.train
    import torch
    from ray.train.torch import prepare_model

    model = prepare_model(torch.nn.Linear(32, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    done = []
    for _ in range(STEPS):
        loss = model(torch.randn(16, 32)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        time.sleep(PAUSE)
        done.append(time.monotonic())
    rank = ray.train.get_context().get_world_rank()
    Path(config["folder"], f"rank{rank}.json").write_text(json.dumps(done))


def rankfire(folder: Path) -> Callable[[], object]:
    from orchestrator import Orchestrator

    orchestrator = Orchestrator(build, workers=RANKS, config={"folder": str(folder)}, storage=folder / "runs")
    return lambda: orchestrator.run(max_epochs=1, epoch_length=STEPS)


def ray_train(folder: Path) -> Callable[[], object]:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    return TorchTrainer(
        loop,
        train_loop_config={"folder": str(folder)},
        scaling_config=ScalingConfig(num_workers=RANKS),
        run_config=RunConfig(name="startup", storage_path=str(folder / "runs")),
    ).fit


def child(side: str, folder: Path) -> None:
    import ray

    run = rankfire(folder) if side == "rankfire" else ray_train(folder)
    ray.init(**_report.RAY)
    called = time.monotonic()
    run()
    returned = time.monotonic()
    _report.note(folder, "driver", [called, returned])
    ray.shutdown()


def times(folder: Path) -> tuple[float, float]:
    """Seconds from the call to the first step on all ranks, and from the last step on any to the return."""
    ranks = _report.read(folder, "rank*")
    assert len(ranks) == RANKS, f"expected the times of {RANKS} ranks, received {len(ranks)}"
    [[called, returned]] = _report.read(folder, "driver")
    return max(done[0] for done in ranks) - called, returned - max(done[-1] for done in ranks)


def main(rounds: int) -> None:
    print(__doc__)
    print(f"machine: {_report.machine()}\n")
    me = str(Path(__file__).resolve())
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    with _report.private_folder() as root:
        for turn in range(rounds):
            for side, environment in SIDES.items():
                if side != "ray-train-tuned" or turn == 0:
                    folder = _report.measure(root, f"{side} {turn}", [me, "--child", side], **environment)
                    found[side].append(times(folder))
    rows = [("s, medians (all)", "rankfire", "Ray Train", "Ray Train, poll 50 ms", "ours / theirs", "target")]
    for index, what in enumerate(("run() → first step on both ranks", "last step → run() returned")):
        columns = {side: [pair[index] for pair in pairs] for side, pairs in found.items()}
        ours, theirs = statistics.median(columns["rankfire"]), statistics.median(columns["ray-train"])
        target = f"≤ 1/{FIRST_TARGET:g}: {_report.verdict(theirs / ours >= FIRST_TARGET)}"
        if index == 1:
            target = f"≤ {END_TARGET:g} s: {_report.verdict(ours <= END_TARGET)}"
        rows.append((what, *(_report.spread(values) for values in columns.values()), f"1/{theirs / ours:.1f}", target))
    _report.table(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Start and end of a run, ours and Ray Train's.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("folder", type=Path, nargs="?", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.folder)
    else:
        main(arguments.rounds)
