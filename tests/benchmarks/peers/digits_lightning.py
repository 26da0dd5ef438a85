"""The digits job as one writes it for Lightning: a LightningModule, a Trainer with DDP, and nothing else attached.

Run by `digits_throughput.py` as `torchrun --nproc-per-node 2 digits_lightning.py EPOCHS FOLDER`. Progress bar, logger,
checkpoints and summary are off; the loss is logged per epoch, reduced over the ranks. All else is as in
`digits_torchrun.py`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import lightning
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch.utils.data import DataLoader

from examples.digits.program import Net, digits

GLOBAL_BATCH = 64
OFF = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")


class Digits(lightning.LightningModule):
    """The network and its step; notes when each epoch ended."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(64)
        self.ended: list[tuple[float, float]] = []

    def training_step(self, batch, number):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(y))
        return loss

    def on_train_epoch_end(self):
        self.ended.append((time.monotonic(), time.process_time()))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.003)


def main(epochs: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    train_set, _ = digits()
    world_size = int(os.environ["WORLD_SIZE"])
    module = Digits()
    trainer = lightning.Trainer(
        accelerator="cpu", devices=world_size, strategy="ddp", max_epochs=epochs, **dict.fromkeys(OFF, False)
    )
    trainer.fit(module, DataLoader(train_set, batch_size=GLOBAL_BATCH // world_size, shuffle=True))
    result = {
        "ended": module.ended,
        "steps": trainer.global_step,
        "samples": len(train_set),
        "loss": float(trainer.callback_metrics["loss"]),
    }
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(result))
    dist.barrier()  # both have left their notes
    os._exit(0)  # as in `digits_torchrun.py`


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
