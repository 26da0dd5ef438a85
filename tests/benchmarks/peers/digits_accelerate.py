"""The digits job as one writes it for Hugging Face Accelerate: its own preparation, backward and data sharding.

Run by `digits_throughput.py` as `torchrun --nproc-per-node 2 digits_accelerate.py EPOCHS FOLDER`. All else is as in
`digits_torchrun.py`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from accelerate import Accelerator
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from examples.digits.program import Net, digits

GLOBAL_BATCH = 64


def main(epochs: int, folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    train_set, _ = digits()
    net = Net(64)
    model, optimizer, loader = accelerator.prepare(
        net,
        torch.optim.Adam(net.parameters(), lr=0.003),
        DataLoader(train_set, batch_size=GLOBAL_BATCH // accelerator.num_processes, shuffle=True),
    )
    mean_loss = MeanMetric()
    ended = []
    losses = []
    for _ in range(epochs):
        mean_loss.reset()
        for x, y in loader:
            model.train()
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            mean_loss.update(loss.detach(), weight=len(y))
        losses.append(mean_loss.compute().item())
        ended.append((time.monotonic(), time.process_time()))
    steps = epochs * len(loader)
    (folder / f"rank{accelerator.process_index}.json").write_text(
        json.dumps({"ended": ended, "steps": steps, "samples": len(train_set), "loss": losses[-1]})
    )
    accelerator.wait_for_everyone()  # both have left their notes
    os._exit(0)  # as in `digits_torchrun.py`


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
