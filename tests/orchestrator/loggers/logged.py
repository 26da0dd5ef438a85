"""A whole run in this process that tells a tracker one of everything."""

from __future__ import annotations

from pathlib import Path

from orchestrator import Checkpoint, Evaluate, Orchestrator
from orchestrator.loggers import Logger
from tests.orchestrator.linear import make
from workers import Events

__all__ = ["logged"]


def logged(
    storage: Path, logger: Logger, max_epochs: int = 2, *, figure: object = None, refused: bool = False
) -> Orchestrator:
    """Train; at the end of the second epoch an image, a histogram and perhaps a figure are told."""
    orchestrator = make(storage, config={"lr": 0.1})
    for handler in (Evaluate(), logger, Checkpoint()):
        orchestrator.attach(handler)

    @orchestrator.on(Events.EPOCH_COMPLETED(once=2))
    def draw(run: Orchestrator) -> None:
        logger.log_image("sample", [[0.0, 1.0], [0.5, 0.0]])
        logger.log_histogram("weights", [0.0, 0.1, 1.0], bins=2)
        if figure is not None:
            logger.log_figure("curve", figure)

    orchestrator.run(max_epochs)
    assert (logger.failed is not None) == refused
    return orchestrator
