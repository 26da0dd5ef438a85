"""What a snapshot costs: taking and restoring one, beside `copy.deepcopy` and `torch.save` of the same state dicts.

Run `python tests/benchmarks/snapshots.py`. The state is a transformer's with AdamW's; everything is in memory, on the
CPU, with one thread. Each figure is the best of several rounds, taken in turns; memory is there already for ours, which
uses it again, while a deepcopy gets new memory each time, as it would in training. What every snapshot tells the driver
(`own`) is in the figures of ours.
"""

from __future__ import annotations

import argparse
import copy
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn

from workers.engine import Engine
from workers.parcels import SnapshotLabel
from workers.program import Program
from workers.snapshot import SnapshotRing
from workers.worker import Worker

SIZES = {12: (128, 5), 110: (256, 12), 400: (512, 11)}  # MB of state: width and layers of a transformer
PLAIN = (8, 1)
ROUNDS = 7


class Rank:
    """A rank with a model of some size that has made one step, and its ring."""

    def __init__(self, width: int, layers: int) -> None:
        torch.manual_seed(0)
        worker = Worker(device=torch.device("cpu"))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        self.model = worker.prepare(nn.TransformerEncoder(layer, layers, enable_nested_tensor=False))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 1e-3, total_steps=1000)
        trainer = Engine(self.step)
        program = Program(
            engines={"trainer": trainer},
            data={"trainer": worker.loader(range(1000), global_batch_size=10)},
            state={"model": self.model, "optimizer": self.optimizer, "scheduler": scheduler},
        )
        self.ring = SnapshotRing(worker, program)
        trainer.run(program.data["trainer"], max_iters=1)
        self.taken = 0
        tensors = [*self.model.parameters(), *(v for state in self.optimizer.state.values() for v in state.values())]
        self.megabytes = sum(tensor.nbytes for tensor in tensors) / 1e6

    def step(self, engine: Engine, batch: object) -> None:
        self.optimizer.zero_grad()
        self.model(torch.randn(1, 4, self.model.layers[0].linear1.in_features)).square().mean().backward()
        self.optimizer.step()

    def states(self) -> tuple[object, object]:
        return self.model.state_dict(), self.optimizer.state_dict()

    def take(self) -> None:
        self.taken += 1
        self.ring.take(SnapshotLabel(iteration=self.taken))

    def restore(self) -> None:
        self.ring.restore(self.ring.held[-1])

    def deepcopy(self) -> None:
        self.copy = copy.deepcopy(self.states())

    def load(self) -> None:
        model, optimizer = copy.deepcopy(self.copy)  # the optimizer would keep, and change, what it is given
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)

    def save(self) -> None:
        torch.save(self.states(), io.BytesIO())


def best(jobs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Milliseconds of each job."""
    found = dict.fromkeys(jobs, float("inf"))
    for _ in range(rounds):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            found[name] = min(found[name], 1e3 * (time.perf_counter() - started))
    return found


def main(rounds: int = ROUNDS) -> None:
    torch.set_num_threads(1)
    print(
        f"{'state':>9}{'take':>10}{'deepcopy':>10}{'torch.save':>12}{'ratios':>14}{'restore':>12}{'load':>10}{'ratio':>8}"
    )
    for width, layers in (PLAIN, *SIZES.values()):
        rank = Rank(width, layers)
        rank.take()
        rank.take()  # now both have their memory
        jobs = {name: getattr(rank, name) for name in ("take", "deepcopy", "save", "restore", "load")}
        ms = best(jobs, rounds)
        ratios = f"1/{ms['deepcopy'] / ms['take']:.1f} 1/{ms['save'] / ms['take']:.1f}"
        print(
            f"{rank.megabytes:6.1f} MB{ms['take']:7.2f} ms{ms['deepcopy']:7.2f} ms{ms['save']:9.2f} ms{ratios:>14}"
            f"{ms['restore']:9.2f} ms{ms['load']:7.2f} ms{'1/' + format(ms['load'] / ms['restore'], '.1f'):>8}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Cost of a snapshot, ours and that of copy.deepcopy and torch.save.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    main(parser.parse_args().rounds)
