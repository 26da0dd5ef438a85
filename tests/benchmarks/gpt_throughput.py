"""Samples per second of the GPT example: on our orchestrator, and as a plain loop under torchrun; with DDP and FSDP2.

Run `python tests/benchmarks/gpt_throughput.py`. Ours: `examples/gpt/program.py` as it is, without evaluation and
checkpoints. Peer: `peers/gpt_torchrun.py`, the same model, text, batch size, precision, accumulation, clipping,
schedule and metric. Two ranks of one torch thread each. Counted are the steps after a warm-up, on the slower rank; runs
are taken in turns, and the ratio is that of two runs which follow each other. A third side: the peer once more, beside
a Ray that has two actors and nothing to do: what is Ray's share where ranks leave it no core of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import _report

RANKS = 2
WARM_UP = 5  # steps
TARGET = 0.98
PEER = str(Path(__file__).resolve().parent / "peers" / "gpt_torchrun.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS), PEER]
CONFIG: dict[str, Any] = {
    **{"layers": 4, "width": 128, "heads": 4, "length": 64, "dropout": 0.1, "activation_checkpointing": False},
    **{"batch_size": 16, "accumulate": 2, "lr": 0.002, "warm_up": 50, "steps": 1000},
}


def timed(worker: Any) -> Any:
    """The example's program; notes when the warm-up and the last step ended."""
    from examples.gpt.program import build
    from workers import Events

    program = build(worker)
    trainer, times = program.engines["trainer"], []

    def note(engine: Any) -> None:
        times.append((time.monotonic(), time.process_time()))

    def keep(engine: Any) -> None:
        result = {"times": times, "loss": engine.state.metrics["loss"]}
        Path(worker.config["folder"], f"rank{worker.rank}.json").write_text(json.dumps(result))

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=[WARM_UP, worker.config["last"]]), note)
    trainer.add_event_handler(Events.COMPLETED, keep)
    return program


def child(strategy: str, steps: int, folder: Path) -> None:
    """Our side, in a process of its own."""
    import ray

    from orchestrator import Orchestrator

    ray.init(**_report.RAY)
    config = {**CONFIG, "strategy": strategy, "folder": str(folder), "last": steps}
    Orchestrator(timed, workers=RANKS, config=config, storage=folder / "runs").run(max_epochs=1, epoch_length=steps)
    ray.shutdown()


@contextlib.contextmanager
def idle_ray(there: bool) -> Iterator[None]:
    """A Ray as a run of ours has one, with as many actors as there are ranks, all idle."""
    if not there:
        yield
        return
    import ray

    class Idle:
        def here(self) -> bool:
            return True

    ray.init(**_report.RAY)
    try:
        actors = [ray.remote(Idle).options(num_cpus=0.5).remote() for _ in range(RANKS)]
        assert all(ray.get([actor.here.remote() for actor in actors]))
        yield
    finally:
        ray.shutdown()


class Result(NamedTuple):
    """What one run gave."""

    rate: float  # samples per second, of all ranks
    cpu: float  # ms of CPU time that a rank took for a step, all its threads
    loss: float


def result(folder: Path, steps: int) -> Result:
    """From the notes of all ranks; the slowest one counts."""
    ranks = _report.read(folder, "rank*")
    assert len(ranks) == RANKS, f"expected the times of {RANKS} ranks, received {len(ranks)}"
    wall, cpu = (max(rank["times"][-1][clock] - rank["times"][0][clock] for rank in ranks) for clock in (0, 1))
    measured = steps - WARM_UP
    return Result(rate=CONFIG["batch_size"] * measured / wall, cpu=cpu / measured * 1e3, loss=ranks[0]["loss"])


def ratios(ours: list[Result], theirs: list[Result]) -> tuple[float, float]:
    """Of samples per second and of CPU time: medians of those of the rounds."""
    pairs = list(zip(ours, theirs, strict=True))
    return statistics.median(a.rate / b.rate for a, b in pairs), statistics.median(a.cpu / b.cpu for a, b in pairs)


def main(strategies: list[str], steps: int, rounds: int) -> None:
    print(__doc__)
    print(f"machine: {_report.machine()}\n")
    me = str(Path(__file__).resolve())
    rows, told = [("2 ranks", "samples/s, median (all)", "CPU of a rank, ms a step", "loss")], []
    with _report.private_folder() as root:
        for strategy in strategies:
            commands = {
                "rankfire": [me, "--child", strategy, "--steps", str(steps)],
                "torchrun": [*TORCHRUN, strategy, str(steps)],
                "torchrun beside Ray": [*TORCHRUN, strategy, str(steps)],
            }
            found: dict[str, list[Result]] = {side: [] for side in commands}
            for turn in range(rounds):
                for side, command in commands.items():
                    with idle_ray(side.endswith("Ray")):
                        folder = _report.measure(root, f"{strategy} {side} {turn}", command, OMP_NUM_THREADS="1")
                    found[side].append(result(folder, steps))
            for side, results in found.items():
                rates, cpu, losses = zip(*results, strict=True)
                loss = f"{statistics.median(losses):.4f}"
                rows.append((f"{side}, {strategy}", _report.spread(rates, "{:.1f}"), _report.spread(cpu), loss))
            rate, cpu = ratios(found["rankfire"], found["torchrun"])
            beside, _ = ratios(found["torchrun beside Ray"], found["torchrun"])
            told.append(
                f"{strategy}: samples/s, ours / theirs, median of the rounds: {rate:.3f}; target ≥ {TARGET}: "
                f"{_report.verdict(rate >= TARGET)}; CPU time of a step, ours / theirs: {cpu:.3f}; theirs beside an "
                f"idle Ray / theirs: {beside:.3f}"
            )
    _report.table(rows)
    print("\n" + "\n".join(told))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Samples per second of the GPT example, ours and torchrun's.")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--strategies", nargs="+", default=["ddp", "fsdp"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("folder", type=Path, nargs="?", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.steps, arguments.folder)
    else:
        main(arguments.strategies, arguments.steps, arguments.rounds)
