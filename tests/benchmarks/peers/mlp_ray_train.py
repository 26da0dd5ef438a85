"""The perceptron of `_mlp.py` as one writes it for Ray Train (v2): a report with a checkpoint every so many iterations.

Run as `mlp_ray_train.py EVERY TIMEOUT ITERATIONS FOLDER`; collectives that take longer than `TIMEOUT` seconds raise.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RANKS = 2


def loop(config: dict[str, Any]) -> None:
    """What a worker of Ray Train runs."""
    import ray.train
    import torch
    import torch.distributed as dist
    from ray.train.torch import prepare_model

    from tests.benchmarks import _mlp
    from tests.benchmarks._trail import Trail

    trail = Trail(config["folder"])
    torch.set_num_threads(1)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model = _mlp.network()
    optimizer, begun = _mlp.adam(model), 0
    torch.manual_seed(rank)
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            begun = _mlp.load(torch.load(Path(folder, "state.pt"), weights_only=True), model, optimizer)
    spread = prepare_model(model)
    generation = torch.tensor(time.monotonic_ns())
    dist.broadcast(generation, 0)
    for iteration in range(begun + 1, config["iterations"] + 1):
        _mlp.train_step(spread, optimizer)
        trail.completed(generation=int(generation), rank=rank, world_size=world_size, iteration=iteration)
        if config["every"] and iteration % config["every"] == 0:
            with tempfile.TemporaryDirectory() as folder:
                if rank == 0:
                    torch.save(_mlp.state_of(model, optimizer, iteration), Path(folder, "state.pt"))
                saved = ray.train.Checkpoint.from_directory(folder) if rank == 0 else None
                ray.train.report({"iteration": iteration}, checkpoint=saved)


def main(every: int, timeout: float, iterations: int, folder: Path) -> None:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from tests.benchmarks import _report

    ray.init(**_report.RAY)
    TorchTrainer(
        loop,
        train_loop_config={"every": every, "iterations": iterations, "folder": str(folder)},
        torch_config=TorchConfig(backend="gloo", timeout_s=int(timeout)),
        scaling_config=ScalingConfig(num_workers=RANKS),
        run_config=RunConfig(
            name="mlp",
            storage_path=str(folder / "runs"),
            failure_config=FailureConfig(max_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    ).fit()
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
