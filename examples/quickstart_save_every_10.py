"""Save the model and the trainer every 10 epochs; run again with the same folder to go on with the newest.

A run that was stopped and went on ends with the very weights of one that was not.

Run `python examples/quickstart_save_every_10.py`; it saves below `build/saved`, or where `--folder` says.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.quickstart import Samples, make_model, make_trainer
from workers import Engine, Events


def main(folder: Path, epochs: int = 30, epoch_length: int = 100) -> nn.Module:
    """Train, and give the model."""
    folder.mkdir(parents=True, exist_ok=True)
    model = make_model()
    trainer = make_trainer(model)

    @trainer.on(Events.EPOCH_COMPLETED(every=10))
    def save(engine: Engine) -> None:
        path = folder / f"epoch-{engine.state.epoch:03d}.pt"
        torch.save({"model": model.state_dict(), "trainer": engine.state_dict()}, path)
        print(f"saved {path}")

    @trainer.on(Events.RESUMED)
    def tell(engine: Engine) -> None:
        print(f"going on after epoch {engine.state.epoch}")

    if saved := sorted(folder.glob("epoch-*.pt")):
        newest = torch.load(saved[-1], weights_only=True)
        model.load_state_dict(newest["model"])
        trainer.load_state_dict(newest["trainer"])
    trainer.run(Samples(seed=0), max_epochs=epochs, epoch_length=epoch_length)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train, saving every 10 epochs.")
    parser.add_argument("--folder", type=Path, default=Path("build/saved"))
    main(parser.parse_args().folder)
