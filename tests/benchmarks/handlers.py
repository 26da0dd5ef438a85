"""What all shipped handlers cost an iteration, attached with their defaults, beside a step of 10 ms.

Run `python tests/benchmarks/handlers.py`. One process and one thread, the model of examples/digits, trained on batches
of 256 images. Handlers of a step cost microseconds, which the jitter of a real step would hide: so a few real steps
fill parameters, gradients and the optimizer, then the engine runs on with a step that returns the last output; what is
left is handlers and loop. The loop alone is measured the same way and taken off. CPU time of the thread, the best of
several rounds. Handlers of the driver (loggers, early stopping at the orchestrator) run in another process.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.nn.functional import cross_entropy

from examples.digits.program import Net
from tests.benchmarks import _report
from workers import Engine, Program, Worker
from workers.events import Events
from workers.handlers import (
    EMA,
    CheckDivergence,
    EarlyStopping,
    GarbageCollection,
    LRSchedule,
    Memory,
    Norms,
    Profile,
    ReduceLROnPlateau,
    TerminateOnNan,
    Throughput,
    TimeLimit,
    Timers,
)

STEP, TARGET = 10.0, 2.0  # ms, percent of it
EPOCH, ROUNDS = 200, 7  # iterations of an epoch; how often each is measured


def cosine(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100_000)


def called(handler: Any) -> Callable[[Engine], object]:
    """Attach a handler that is a function of an iteration."""
    return lambda engine: engine.add_event_handler(Events.ITERATION_COMPLETED(every=handler.every), handler)


HANDLERS: dict[str, Callable[[Engine], object]] = {
    "EarlyStopping": lambda engine: EarlyStopping("loss", patience=1000).attach(engine),
    "ReduceLROnPlateau": lambda engine: ReduceLROnPlateau("loss", patience=1000).attach(engine),
    "TimeLimit": lambda engine: TimeLimit(3600).attach(engine),
    "LRSchedule": lambda engine: LRSchedule(cosine).attach(engine),
    "EMA": lambda engine: EMA().attach(engine),
    "Norms": lambda engine: Norms().attach(engine),
    "Throughput": lambda engine: Throughput().attach(engine),
    "Memory": lambda engine: Memory().attach(engine),
    "GarbageCollection": lambda engine: GarbageCollection().attach(engine),
    "Timers": lambda engine: Timers(tell=lambda text: None).attach(engine),
    "Profile": lambda engine: Profile(first=10**9).attach(engine),
    "TerminateOnNan": lambda engine: called(TerminateOnNan())(engine),
    "CheckDivergence": lambda engine: called(CheckDivergence())(engine),
}


class Digits:
    """The model in training, on an engine that a program knows."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.worker = Worker(device=torch.device("cpu"))
        self.model = self.worker.prepare(Net(64))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.batch = torch.randn(256, 1, 8, 8), torch.randint(0, 10, (256,))
        self.engine = Engine(lambda engine, batch: self.step())
        self.engine.worker = self.worker
        state = {"model": self.model, "optimizer": self.optimizer}
        self.worker.program = Program(engines={"trainer": self.engine}, state=state)
        self.engine.state.metrics["loss"] = 1.0

    def step(self) -> dict[str, torch.Tensor]:
        loss = cross_entropy(self.model(self.batch[0]), self.batch[1])
        self.optimizer.zero_grad()
        self.worker.backward(loss)
        self.optimizer.step()
        return {"loss": loss.detach()}


def step_ms(steps: int) -> float:
    """CPU time of one real step."""
    digits, took = Digits(), []
    for _ in range(steps):
        started = time.thread_time()
        digits.step()
        took.append(time.thread_time() - started)
    return sorted(took)[steps // 2] * 1e3


def cost(names: list[str], epochs: int) -> float:
    """Milliseconds that an iteration takes without its step, with these handlers."""
    digits = Digits()
    output = digits.step()
    digits.engine.process_function = lambda engine, batch: output
    for name in names:
        HANDLERS[name](digits.engine)
    started = time.thread_time()
    digits.engine.run(None, max_epochs=epochs, epoch_length=EPOCH)
    return (time.thread_time() - started) / (epochs * EPOCH) * 1e3


def main(epochs: int) -> None:
    torch.set_num_threads(1)
    print(__doc__)
    print(f"machine: {_report.machine()}\n")
    sets = {"none": [], **{name: [name] for name in HANDLERS}, "all": list(HANDLERS)}
    best = dict.fromkeys(sets, float("inf"))
    for _ in range(ROUNDS):
        for name, chosen in sets.items():
            best[name] = min(best[name], cost(chosen, epochs))
    real = step_ms(60)
    rows = [("handler", "an iteration, ms", f"% of a step of {STEP:g} ms", "target")]
    for name in [*HANDLERS, "all"]:
        took = max(best[name] - best["none"], 0.0)
        share = took / STEP * 100
        target = f"≤ {TARGET:g}: {_report.verdict(share <= TARGET)}" if name == "all" else ""
        rows.append((name, f"{took:.4f}", f"{share:.2f}", target))
    _report.table(rows)
    print(f"\nthe loop alone: {best['none'] * 1e3:.1f} µs; a real step of this model: {real:.1f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The cost of all shipped handlers in an iteration.")
    parser.add_argument("--epochs", type=int, default=5)
    main(parser.parse_args().epochs)
