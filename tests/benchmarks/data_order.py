"""What the global data order costs: indices of a step out of huge data, memory, and the first batch after a resume.

Run `python tests/benchmarks/data_order.py`. Ours: `GlobalBatches` and `GlobalLoader`, whose order is computed. Peers:
torch's `RandomSampler`, whose order is one `randperm` of the whole data (at the sizes that this machine can hold: the
tensor, and the list that the sampler makes of it), and a plain `DataLoader` that is read up to its place, which is
how it resumes. The peer is read to a smaller iteration, to save time: what an iteration costs is printed, and what
the real one would. Memory is the peak that Python and NumPy allocate (tracemalloc); torch's own is not seen by it, so
the tensor of `randperm` is added by its size. Times are medians of the calling thread's CPU time, since cores are
shared; nothing here waits for anything else. Every repetition has a seed of its own: how often a permutation has to
try varies with it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.utils.data import DataLoader, RandomSampler

from tests.benchmarks import _report
from workers.data.loader import GlobalLoader
from workers.data.permutation import permute
from workers.data.sampler import GlobalBatches

INDICES = 1_024
SIZES = (10**4, 10**7, 3 * 10**9)
HELD_BY_TORCH = 10**7  # 3·10⁹ would be 24 GB as a tensor, and some 120 GB as the sampler's list
FAR = 10**6  # iterations into the epoch
READ = 20_000  # iterations that the peer is read up to
GLOBAL_BATCH = 32
TARGET_MS, TARGET_SHARE = 2.0, 0.10


class Numbers:
    """A data set that costs nothing to read."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> int:
        return index


def seconds(work: Callable[[], object], rounds: int) -> float:
    """The median time of a call."""
    times = []
    for _ in range(rounds):
        started = time.thread_time()
        work()
        times.append(time.thread_time() - started)
    return statistics.median(times)


def peak(work: Callable[[], object]) -> int:
    """Bytes that Python and NumPy hold at most during a call, beyond what they held before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def ours(samples: int) -> Callable[[], object]:
    """The indices of the first step of a pass that was not looked at before."""
    positions, key = range(samples // 2, samples // 2 + INDICES), iter(range(10**9))
    return lambda: permute(positions, samples, next(key))


def theirs(samples: int) -> Callable[[], object]:
    """The same from torch: an iterator over a new pass, and its first indices."""

    def work() -> list[int]:
        indices = iter(RandomSampler(range(samples)))
        return [next(indices) for _ in range(INDICES)]

    return work


def order(rounds: int) -> None:
    rows = [("samples", "ours, ms", "target", "ours, peak", "RandomSampler, ms", "its peak (with randperm)")]
    for samples in SIZES:
        mine = seconds(ours(samples), rounds * 20) * 1e3
        target = f"≤ {TARGET_MS:g}: {_report.verdict(mine <= TARGET_MS)}" if samples == SIZES[-1] else ""
        other, memory = "-", "- (cannot be held)"
        if samples <= HELD_BY_TORCH:
            other = f"{seconds(theirs(samples), rounds) * 1e3:.1f}"
            memory = size(peak(theirs(samples)) + 8 * samples)
        rows.append((f"{samples:,}", f"{mine:.2f}", target, size(peak(ours(samples))), other, memory))
    print(f"{INDICES:,} indices of a pass that begins:")
    _report.table(rows)


def size(count: int) -> str:
    """Bytes in words."""
    return f"{count / 1e3:,.0f} kB" if count < 1e6 else f"{count / 1e6:,.0f} MB"


def first_batch(iteration: int) -> Callable[[], object]:
    """A new loader, put to its place, and its first batch."""
    seeds = iter(range(10**9))

    def work() -> object:
        batches = GlobalBatches(samples=SIZES[-1], batch_size=GLOBAL_BATCH, shuffle=True, seed=next(seeds))
        loader = GlobalLoader(Numbers(SIZES[-1]), batches, lambda: (0, 2))
        loader.seek(iteration)
        return next(iter(loader))

    return work


def read_up_to(iterations: int) -> None:
    batches = iter(DataLoader(Numbers(HELD_BY_TORCH), batch_size=GLOBAL_BATCH // 2))
    for _ in range(iterations):
        next(batches)


def resume(rounds: int) -> None:
    near, far = first_batch(0), first_batch(FAR)
    near(), far()  # what happens once in a process
    starts, middles = [], []
    for _ in range(rounds * 40):  # in turns, so that both meet the same machine
        starts.append(seconds(near, 1))
        middles.append(seconds(far, 1))
    at_start, at_far = statistics.median(starts), statistics.median(middles)
    apart = at_far / at_start - 1
    each = seconds(lambda: read_up_to(READ), max(1, rounds // 2)) / READ
    print(
        f"\nfrom a loader's making to its first batch, {SIZES[-1]:,} samples, global batch {GLOBAL_BATCH}, rank 0 of 2:"
    )
    _report.table(
        [
            ("standing at iteration", "ms", "", "target"),
            ("0", f"{at_start * 1e3:.2f}", "", ""),
            (f"{FAR:,}", f"{at_far * 1e3:.2f}", f"{apart:+.1%}", f"±{TARGET_SHARE:.0%}: {_verdict(apart)}"),
        ]
    )
    print(
        f"peer, a plain DataLoader without shuffling read up to iteration {READ:,}: {each * 1e6:.1f} µs an iteration; "
        f"up to {FAR:,} that would be {each * FAR:.0f} s (computed, not measured), with samples that cost nothing"
    )


def _verdict(apart: float) -> str:
    return _report.verdict(abs(apart) <= TARGET_SHARE)


def main(rounds: int) -> None:
    print(__doc__)
    print(f"machine: {_report.machine()}\n")
    torch.set_num_threads(1)
    order(rounds)
    resume(rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The global data order: its time and memory, and torch's.")
    parser.add_argument("--rounds", type=int, default=5)
    main(parser.parse_args().rounds)
