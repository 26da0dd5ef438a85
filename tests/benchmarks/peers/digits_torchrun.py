"""The digits job as one writes it for torchrun: DDP, DistributedSampler, DataLoader, a torchmetrics mean of the loss.

Run by `digits_throughput.py` as `torchrun --nproc-per-node 2 digits_torchrun.py EPOCHS FOLDER`. Network, data, loss,
optimizer, batch size and metric are those of `examples/digits`; the metric is reset at an epoch's start, updated in
every step, and computed over all ranks at an epoch's end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics import MeanMetric

from examples.digits.program import Net, digits

GLOBAL_BATCH = 64


def main(epochs: int, folder: Path) -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    train_set, _ = digits()
    model = DistributedDataParallel(Net(64))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    sampler = DistributedSampler(train_set, shuffle=True, seed=0)
    loader = DataLoader(train_set, batch_size=GLOBAL_BATCH // world_size, sampler=sampler)
    mean_loss = MeanMetric()
    ended = []
    losses = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        mean_loss.reset()
        for x, y in loader:
            model.train()
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            mean_loss.update(loss.detach(), weight=len(y))
        losses.append(mean_loss.compute().item())
        ended.append((time.monotonic(), time.process_time()))
    steps = epochs * len(loader)
    (folder / f"rank{rank}.json").write_text(
        json.dumps({"ended": ended, "steps": steps, "samples": len(train_set), "loss": losses[-1]})
    )
    dist.barrier()  # both have left their notes
    os._exit(0)  # not measured: tearing the group down here ends one run in ten in std::terminate, in torch 2.13


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
