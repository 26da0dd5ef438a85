"""The perceptron of `_mlp.py` as one writes it for torchrun: DDP; rank 0 saves, and a restart begins with that.

Run as `torchrun --nproc-per-node 2 --max-restarts 1000 mlp_torchrun.py EVERY TIMEOUT ITERATIONS FOLDER`: saves every so
many iterations (0: never), collectives that take longer than `TIMEOUT` seconds raise.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.benchmarks import _mlp
from tests.benchmarks._trail import Trail


def main(every: int, timeout: float, iterations: int, folder: Path) -> None:
    trail = Trail(folder)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model = _mlp.network()
    optimizer = _mlp.adam(model)
    path, begun = folder / "checkpoint.pt", 0
    torch.manual_seed(rank)
    if path.exists():
        begun = _mlp.load(torch.load(path, weights_only=True), model, optimizer)
    spread = DistributedDataParallel(model)
    generation = torch.tensor(time.monotonic_ns())
    dist.broadcast(generation, 0)
    for iteration in range(begun + 1, iterations + 1):
        _mlp.train_step(spread, optimizer)
        trail.completed(generation=int(generation), rank=rank, world_size=world_size, iteration=iteration)
        if every and iteration % every == 0 and rank == 0:
            torch.save(_mlp.state_of(model, optimizer, iteration), path.with_suffix(".new"))
            os.replace(path.with_suffix(".new"), path)
    dist.barrier()
    os._exit(0)  # not measured: tearing the group down here ends one run in ten in std::terminate, in torch 2.13


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
