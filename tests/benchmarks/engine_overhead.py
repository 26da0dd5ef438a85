"""What an iteration costs beside the step itself: a bare loop, our engine with its timers on, and
pytorch-ignite.

Run `python tests/benchmarks/engine_overhead.py`. The step is empty, the data a range; the filtered handlers
listen to ITERATION_COMPLETED(every=1000). Times are CPU time of the thread, since cores are shared; each
figure is the best of several rounds, taken in turns, with the bare loop taken off.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import ignite.engine

from workers.engine import Engine
from workers.events import Events

ROUNDS = 25
TARGETS = {0: 15, 10: 50, 1000: 500}  # handlers: how many times cheaper than pytorch-ignite


def step(engine: object, batch: object) -> object:
    return batch


def handler(engine: object) -> None:
    pass


def bare(iterations: int) -> Callable[[], float]:
    def run() -> float:
        started = time.thread_time()
        for batch in range(iterations):
            step(None, batch)
        return (time.thread_time() - started) / iterations

    return run


def ours(handlers: int, iterations: int) -> Callable[[], float]:
    engine = Engine(step)
    for _ in range(handlers):
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=1000), handler)

    def run() -> float:
        started = time.thread_time()
        engine.run(range(iterations))
        return (time.thread_time() - started) / iterations

    return run


def theirs(handlers: int, iterations: int) -> Callable[[], float]:
    engine = ignite.engine.Engine(step)
    for _ in range(handlers):
        engine.add_event_handler(ignite.engine.Events.ITERATION_COMPLETED(every=1000), handler)

    def run() -> float:
        started = time.thread_time()
        engine.run(range(iterations), max_epochs=1, epoch_length=iterations)
        return (time.thread_time() - started) / iterations

    return run


def measure(rounds: int) -> dict[tuple[str, int], float]:
    """Seconds an iteration, by (who, handlers)."""
    jobs = {("bare", 0): bare(20_000)}
    for handlers in TARGETS:
        jobs["ours", handlers] = ours(handlers, 20_000)
        jobs["ignite", handlers] = theirs(handlers, 1_000 if handlers >= 1000 else 5_000)
    best = dict.fromkeys(jobs, float("inf"))
    for turn in range(rounds):
        for key, job in jobs.items():
            if key != ("ignite", 1000) or turn < 3:  # that one takes seconds
                best[key] = min(best[key], job())
    return best


def main(rounds: int = ROUNDS) -> None:
    best = measure(rounds)
    floor = best["bare", 0]
    print(f"bare loop with an empty step: {floor * 1e6:.3f} µs an iteration; overhead beyond that:")
    print(f"{'handlers':>8}{'ours, µs':>12}{'ignite, µs':>14}{'ratio':>10}{'target':>10}")
    for handlers, target in TARGETS.items():
        mine, other = best["ours", handlers] - floor, best["ignite", handlers] - floor
        verdict = "" if other / mine >= target else "   missed"
        columns = f"{mine * 1e6:12.3f}{other * 1e6:14.2f}{'1/' + str(round(other / mine)):>10}"
        print(f"{handlers:8d}{columns}{'1/' + str(target):>10}{verdict}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Overhead of an iteration, ours and pytorch-ignite's.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    main(parser.parse_args().rounds)
