"""One evaluation on a rank: an engine run once over its share of the data, beside a training that stays as it was.

Called by the session when the driver orders it, and before the ranks' metrics are merged.
"""

from __future__ import annotations

from workers.data.loader import GlobalLoader
from workers.engine import Engine
from workers.errors import ProgramError
from workers.program import Program
from workers.worker import Worker

__all__ = ["evaluate"]


def evaluate(worker: Worker, program: Program, name: str) -> Engine:
    """Run the engine of that name once over its data, from the start; a collective, where ranks share the data.

    Args:
        worker: of this rank.
        program: its program.
        name: of the engine.

    Returns:
        The engine, with its metrics.

    Raises:
        ProgramError: there is no such engine, or no data for it.
    """
    engine, data = program.engine(name), program.data.get(name)
    if data is None:
        raise ProgramError(f"evaluate({name!r}): expected data for it, received none; give Program data[{name!r}]")
    worker.models.share_buffers()  # one model is evaluated, not one for each rank
    with worker.set_aside():
        if isinstance(data, GlobalLoader):
            view = data.evaluation()
            engine.run(view, max_epochs=1, epoch_length=len(view), resume_from_iteration=0)
            if (
                worker.models.sharded
            ):  # the others are in the middle of a forward pass, and this rank has its part of it
                for batch in view.stand_ins():
                    engine.process_function(engine, batch)
        else:
            engine.run(data, max_epochs=1, resume_from_iteration=0)
    return engine
