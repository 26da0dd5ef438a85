"""Samples per second of the digits job: on our orchestrator, in a plain loop under torchrun, on Accelerate, Lightning.

Run `python tests/benchmarks/digits_throughput.py`. Ours: `examples/digits/program.py` as it is, without evaluation and
checkpoints; the loss is reduced over the ranks at the driver at every epoch's end, while the ranks go on. Peer:
`peers/digits_torchrun.py`, the same network, data, batch size, optimizer and metric with DDP, DistributedSampler and
DataLoader; it reduces the loss with torchmetrics' own collective. The same for Accelerate and Lightning, where they are
installed (`pip install accelerate lightning`). Two ranks of one torch thread each. Counted are whole epochs inside the
ranks after a warm-up, on the slower rank; runs are taken in turns. The samples are those of the data set: the peers'
samplers pad an epoch by one sample, which is not counted. Ray would run its workers at niceness 15, so
that on a busy machine the peers' would go first; here neither side's are niced.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import _report

RANKS = 2
WARM_UP = 3  # epochs
PEERS = {"torchrun": 0.97, "accelerate": 1.0, "lightning": 1.0}  # ours / theirs at least
PROGRAMS = Path(__file__).resolve().parent / "peers"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]


def timed(worker: Any) -> Any:
    """The example's program; notes when each epoch ended."""
    from examples.digits.program import build
    from workers import Events

    program = build(worker)
    trainer = program.engines["trainer"]
    ended: list[tuple[float, float]] = []

    def keep(engine: Any) -> None:
        state, samples = engine.state, len(program.data["trainer"].dataset)
        result = {"ended": ended, "steps": state.iteration, "samples": samples, "loss": state.metrics["loss"]}
        Path(worker.config["folder"], f"rank{worker.rank}.json").write_text(json.dumps(result))

    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: ended.append((time.monotonic(), time.process_time()))
    )
    trainer.add_event_handler(Events.COMPLETED, keep)
    return program


def child(epochs: int, folder: Path) -> None:
    """Our side, in a process of its own."""
    import ray

    from orchestrator import Orchestrator

    ray.init(**_report.RAY)
    config = {"lr": 0.003, "hidden": 64, "folder": str(folder)}
    Orchestrator(timed, workers=RANKS, config=config, storage=folder / "runs").run(max_epochs=epochs)
    ray.shutdown()


class Result(NamedTuple):
    """What one run gave."""

    rate: float  # samples per second, of all ranks
    cpu: float  # ms of CPU time that a rank took for a step, all its threads
    seconds: float  # that were measured
    loss: float  # of the last epoch


def result(folder: Path) -> Result:
    """From the notes of all ranks; the slowest one counts."""
    ranks = _report.read(folder, "rank*")
    assert len(ranks) == RANKS, f"expected the times of {RANKS} ranks, received {len(ranks)}"
    wall, cpu = (
        max(rank["ended"][-1][clock] - rank["ended"][WARM_UP - 1][clock] for rank in ranks) for clock in (0, 1)
    )
    one = ranks[0]
    share = (len(one["ended"]) - WARM_UP) / len(one["ended"])
    samples, steps = one["samples"] * len(one["ended"]) * share, one["steps"] * share
    return Result(rate=samples / wall, cpu=cpu / steps * 1e3, seconds=wall, loss=one["loss"])


def main(epochs: int, rounds: int) -> None:
    print(__doc__)
    print(f"machine: {_report.machine()}\n")
    me = str(Path(__file__).resolve())
    commands = {"rankfire": [me, "--child", "--epochs", str(epochs)]}
    for peer in PEERS:
        if peer == "torchrun" or find_spec(peer) is not None:
            commands[peer] = [*TORCHRUN, str(PROGRAMS / f"digits_{peer}.py"), str(epochs)]
        else:
            print(f"{peer} is not installed: left out\n")
    found: dict[str, list[Result]] = {side: [] for side in commands}
    with _report.private_folder() as root:
        for turn in range(rounds):
            for side, command in commands.items():
                found[side].append(result(_report.measure(root, f"{side} {turn}", command, OMP_NUM_THREADS="1")))
    rows = [("2 ranks, batch 64", "samples/s, median (all)", "CPU of a rank, ms a step", "measured, s", "last loss")]
    for side, results in found.items():
        rates, cpu, seconds, losses = zip(*results, strict=True)
        loss = f"{statistics.median(losses):.5f}"
        rows.append(
            (side, _report.spread(rates, "{:.0f}"), _report.spread(cpu), _report.spread(seconds, "{:.1f}"), loss)
        )
    _report.table(rows)
    print()
    for peer in [side for side in commands if side != "rankfire"]:
        rate, cpu = (
            statistics.median(
                getattr(ours, what) / getattr(theirs, what)
                for ours, theirs in zip(found["rankfire"], found[peer], strict=True)
            )
            for what in ("rate", "cpu")
        )
        told = _report.verdict(rate >= PEERS[peer])
        print(f"ours / {peer}, median of the rounds: {rate:.3f} of the samples/s; target ≥ {PEERS[peer]}: {told}; "
              f"{cpu:.3f} of the CPU time, steadier where other work shares the cores")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Samples per second of the digits job, ours and the peers'.")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("folder", type=Path, nargs="?", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.epochs, arguments.folder)
    else:
        main(arguments.epochs, arguments.rounds)
