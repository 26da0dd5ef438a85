"""Several handlers on one event: they run in the order in which they were attached.

Run `python examples/quickstart_many_handlers.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.quickstart import Samples, make_model, make_trainer
from workers import Engine, Events


def main(epochs: int = 3, epoch_length: int = 100) -> list[str]:
    """Train, and give what the handlers said."""
    said: list[str] = []
    trainer = make_trainer(make_model())

    def say(text: str) -> None:
        said.append(text)
        print(text)

    @trainer.on(Events.EPOCH_COMPLETED)
    def loss(engine: Engine) -> None:
        say(f"epoch {engine.state.epoch}: last loss {engine.state.output:.4f}")

    @trainer.on(Events.EPOCH_COMPLETED)
    def speed(engine: Engine) -> None:
        say(f"epoch {engine.state.epoch}: {engine.state.times[Events.EPOCH_COMPLETED]:.2f} s")

    # `say` has no room for the engine beside the text, so it gets the text only.
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=epochs), say, "that was the last epoch")
    trainer.run(Samples(seed=0), max_epochs=epochs, epoch_length=epoch_length)
    return said


if __name__ == "__main__":
    main()
