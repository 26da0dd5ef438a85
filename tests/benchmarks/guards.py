"""What it costs to look: TerminateOnNan at every iteration, CheckDivergence at every hundredth, of a step of 10 ms.

Run `python tests/benchmarks/guards.py`. The step is a real one, of a model with a million parameters (and one with 25
million, for the comparison of models), its output a loss. Peer: pytorch-ignite's TerminateOnNan, which looks on one
process only; nobody known to us compares models while training. Times are those of the handler's call, the median over
the iterations; on two ranks the mean of both, after a barrier, since a slower rank is waited for in the step anyway.
What ranks must pay to agree on anything is told as well: an all-reduce of one number over gloo.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import _report

STEP = 10.0  # ms
RANKS, WARM_UP = 2, 20
WIDTHS = {"1 million": 700, "25 million": 3530}  # parameters: width of two square layers
TARGET = 2.0  # percent of a step


def timed(handler: Callable[[Any], None], took: list[float]) -> Callable[[Any], None]:
    def call(engine: Any) -> None:
        if getattr(engine, "worker", None) is not None:
            engine.worker.barrier()
        started = time.perf_counter()
        handler(engine)
        took.append(time.perf_counter() - started)

    return call


def step_of(width: int, prepare: Callable[[Any], Any], backward: Callable[[Any], None]) -> Callable[[Any, Any], Any]:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = prepare(torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Linear(width, width)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batch = torch.randn(4, width)

    def step(engine: Any, _: Any) -> Any:
        loss = model(batch).square().mean()
        optimizer.zero_grad()
        backward(loss)
        optimizer.step()
        return {"loss": loss.detach()}

    step.model = model  # type: ignore[attr-defined]
    return step


def alone(side: str, folder: Path, iterations: int) -> None:
    """One process: ours or pytorch-ignite's."""
    import ignite.engine
    import ignite.handlers

    from workers import Engine, Events, TerminateOnNan

    took: list[float] = []
    step = step_of(WIDTHS["1 million"], lambda model: model, lambda loss: loss.backward())
    if side == "ignite":
        engine, event = ignite.engine.Engine(step), ignite.engine.Events.ITERATION_COMPLETED
        engine.add_event_handler(event, timed(ignite.handlers.TerminateOnNan(), took))
        engine.run(range(iterations), max_epochs=1)
    else:
        ours = Engine(step)
        ours.add_event_handler(Events.ITERATION_COMPLETED, timed(TerminateOnNan(), took))
        ours.run(range(iterations), max_epochs=1)
    _report.note(folder, "rank0", {"nan": took[WARM_UP:]})


def guarded(worker: Any) -> Any:
    """A program that notes how long its guards take."""
    from workers import Engine, Events, Program, TerminateOnNan
    from workers.handlers import CheckDivergence

    took: dict[str, list[float]] = {"floor": [], "nan": [], "divergence": []}
    step = step_of(worker.config["width"], worker.prepare, worker.backward)
    trainer = Engine(step)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, timed(lambda _: worker.all_reduce(0, "max"), took["floor"]))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, timed(TerminateOnNan(), took["nan"]))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, timed(CheckDivergence(every=1), took["divergence"]))
    trainer.add_event_handler(
        Events.COMPLETED,
        lambda: _report.note(
            worker.config["folder"], f"rank{worker.rank}", {name: times[WARM_UP:] for name, times in took.items()}
        ),
    )
    return Program(engines={"trainer": trainer}, state={"model": step.model})  # type: ignore[attr-defined]


def together(width: int, folder: Path, iterations: int) -> None:
    import ray

    from orchestrator import Orchestrator

    ray.init(**_report.RAY)
    config = {"folder": str(folder), "width": width}
    orchestrator = Orchestrator(guarded, workers=RANKS, config=config, storage=folder / "runs")
    orchestrator.run(max_epochs=1, epoch_length=iterations)
    ray.shutdown()


def milliseconds(folder: Path, what: str) -> float:
    return statistics.mean(statistics.median(rank[what]) for rank in _report.read(folder, "rank*")) * 1e3


def main(iterations: int) -> None:
    print(__doc__)
    print(f"machine: {_report.machine()}\n")
    me = str(Path(__file__).resolve())
    rows = [("guard", "ranks", "every", "a look, ms", f"% of a step of {STEP:g} ms", "target")]

    def row(name: str, ranks: int, every: int, took: float, *, peer: bool = False) -> None:
        share = took / every / STEP * 100
        target = "" if peer else f"≤ {TARGET:g}: {_report.verdict(share <= TARGET)}"
        rows.append((name, str(ranks), str(every), f"{took:.3f}", f"{share:.3f}", target))

    with _report.private_folder() as root:
        for side in ("ignite", "ours"):
            folder = _report.measure(root, side, [me, "--child", side, "--iterations", str(iterations)])
            name = "pytorch-ignite's TerminateOnNan" if side == "ignite" else "TerminateOnNan"
            row(name, 1, 1, milliseconds(folder, "nan"), peer=side == "ignite")
        for size, width in WIDTHS.items():
            count = iterations if width < 1000 else max(iterations // 10, WARM_UP + 10)
            command = [me, "--child", str(width), "--iterations", str(count)]
            folder = _report.measure(root, f"two {width}", command)
            if width < 1000:
                row("an all-reduce of a number, no guard", RANKS, 1, milliseconds(folder, "floor"), peer=True)
                row("TerminateOnNan", RANKS, 1, milliseconds(folder, "nan"))
            row(f"CheckDivergence, {size} parameters", RANKS, 100, milliseconds(folder, "divergence"))
    _report.table(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The cost of looking for NaN and for models that differ.")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("folder", type=Path, nargs="?", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child in ("ignite", "ours"):
        alone(given.child, given.folder, given.iterations)
    elif given.child:
        together(int(given.child), given.folder, given.iterations)
    else:
        main(given.iterations)
