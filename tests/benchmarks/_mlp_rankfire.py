"""The perceptron of `_mlp.py` on our side: a program whose ranks leave trails, and the job that runs it.

`rankfire` of `_faults.py` runs it as `_mlp_rankfire.py OPTIONS FOLDER`. Options, as JSON: `iterations`, and what
`Orchestrator` is given (`workers`, `recovery`). There are no checkpoints: what a fault needs is in the ranks' memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def build(worker: Any) -> Any:
    """The program; its trail begins here, so that a spare has one too."""
    import torch

    from tests.benchmarks import _mlp
    from tests.benchmarks._trail import Trail
    from workers import Engine, Events, Program

    trail = Trail(worker.config["folder"])
    torch.set_num_threads(1)
    model = worker.prepare(_mlp.network())
    optimizer = _mlp.adam(model)

    def step(engine: Any, batch: Any) -> None:
        loss = _mlp.loss_of(model)
        optimizer.zero_grad()
        worker.backward(loss)
        optimizer.step()

    trainer = Engine(step)

    @trainer.on(Events.ITERATION_COMPLETED)
    def note(engine: Any) -> None:
        trail.completed(
            generation=worker.generation,
            rank=worker.rank,
            world_size=worker.world_size,
            iteration=engine.state.iteration,
        )

    return Program(engines={"trainer": trainer}, state={"model": model, "optimizer": optimizer})


def main(options: dict[str, Any], folder: Path) -> None:
    import ray

    from orchestrator import Orchestrator
    from tests.benchmarks import _report

    ray.init(**_report.RAY)
    iterations = options.pop("iterations")
    Orchestrator(build, config={"folder": str(folder)}, storage=folder / "runs", **options).run(
        max_epochs=1, epoch_length=iterations
    )
    ray.shutdown()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
