"""The GPT example as one writes it for torchrun: DDP or FSDP2, autocast, accumulated gradients, clipping, a schedule.

Run by `gpt_throughput.py` as `torchrun --nproc-per-node 2 gpt_torchrun.py STRATEGY STEPS FOLDER`. Model, text, loss,
optimizer, schedule and batch size are those of `examples/gpt`; the mean of the loss is updated in every step.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics import MeanMetric

from examples.gpt.model import GPT
from examples.gpt.program import mean_loss, parts, warm_up_and_cosine
from examples.gpt.text import CHARACTERS, training_and_validation
from tests.benchmarks.gpt_throughput import CONFIG, WARM_UP


def spread(strategy: str, model: nn.Module) -> nn.Module:
    if strategy == "ddp":
        return DistributedDataParallel(model)
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


@contextlib.contextmanager
def unreduced(model: nn.Module):
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        model.set_requires_gradient_sync(False)
        yield
        model.set_requires_gradient_sync(True)


def main(strategy: str, steps: int, folder: Path) -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    training, _ = training_and_validation(CONFIG["length"])
    shape = {name: CONFIG[name] for name in ("length", "layers", "width", "heads", "dropout")}
    model = spread(strategy, GPT(characters=len(CHARACTERS), **shape))
    optimizer = torch.optim.AdamW(parts(model, decay=0.1), lr=CONFIG["lr"], betas=(0.9, 0.95))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_up_and_cosine(step, warm_up=CONFIG["warm_up"], steps=CONFIG["steps"])
    )
    sampler = DistributedSampler(training, shuffle=True, seed=0)
    batches = iter(DataLoader(training, batch_size=CONFIG["batch_size"] // world_size, sampler=sampler))
    mean, accumulate, times = MeanMetric(), CONFIG["accumulate"], []
    model.train()
    for step in range(1, steps + 1):
        x, y = next(batches)
        optimizer.zero_grad()
        total = torch.zeros(())
        for number, (inputs, targets) in enumerate(zip(x.chunk(accumulate), y.chunk(accumulate), strict=True), start=1):
            with contextlib.nullcontext() if number == accumulate else unreduced(model):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = mean_loss(model(inputs), targets) / accumulate
                loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        mean.update(total, weight=len(y))
        if step in (WARM_UP, steps):
            times.append((time.monotonic(), time.process_time()))
    (folder / f"rank{rank}.json").write_text(json.dumps({"times": times, "loss": mean.compute().item()}))
    dist.barrier()  # both have left their notes
    os._exit(0)  # not measured: tearing the group down here ends one run in ten in std::terminate, in torch 2.13


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
