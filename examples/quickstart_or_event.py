"""One handler on two events: every tenth epoch, and the end of the run. At one firing it runs at most once.

Run `python examples/quickstart_or_event.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.quickstart import Samples, make_model, make_trainer
from workers import Engine, Events


def main(epochs: int = 25, epoch_length: int = 100) -> list[tuple[str, int]]:
    """Train, and give the events and epochs at which the handler ran."""
    calls: list[tuple[str, int]] = []
    trainer = make_trainer(make_model())

    @trainer.on(Events.COMPLETED | Events.EPOCH_COMPLETED(every=10))
    def tell(engine: Engine) -> None:
        calls.append((str(engine.state.last_event), engine.state.epoch))
        print(f"{engine.state.last_event} in epoch {engine.state.epoch}: loss {engine.state.output:.4f}")

    trainer.run(Samples(seed=0), max_epochs=epochs, epoch_length=epoch_length)
    return calls


if __name__ == "__main__":
    main()
