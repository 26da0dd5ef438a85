"""Which gates lie at a boundary: where all that training is made of stands whole, between two iterations.

Only there is a rank's state worth a copy: in its memory (`rewinding.py`), or in a checkpoint that the driver asks for.
"""

from __future__ import annotations

from workers.events import Events
from workers.parcels import CUT, TRAINER, GateKey

__all__ = ["at_boundary"]

_BETWEEN = {
    event.key
    for event in (
        *(Events.STARTED, Events.RESUMED, Events.EPOCH_STARTED, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED),
        *(Events.TERMINATE_SINGLE_EPOCH, Events.TERMINATE, Events.INTERRUPT, Events.COMPLETED),
    )
}


def at_boundary(gate: GateKey) -> bool:
    """Whether the state at a gate is that between two iterations of the trainer.

    Within an iteration its batch is read already, an event of one's own may lie anywhere in the step, and within an
    evaluation a model may hold other weights (averages of them) for as long as that lasts.

    Example:
        >>> at_boundary(GateKey(engine="trainer", event="EPOCH_COMPLETED", count=1))
        True
        >>> at_boundary(GateKey(engine="trainer", event="ITERATION_STARTED", count=1))
        False
    """
    return gate.engine == TRAINER and (gate.event in _BETWEEN or gate.event == CUT)
