"""What `build(worker)` receives: who this rank is, what it computes on, and the few verbs that need to know both.

A `Worker` can be made by hand (`Worker()`) to try a program in a notebook: a world of one, without any process group.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from workers import collectives
from workers.collectives import Op, Value
from workers.data.loader import GlobalLoader, SizedDataset
from workers.data.sampler import GlobalBatches
from workers.errors import ProgramError
from workers.program import Program
from workers.rank import Membership
from workers.strategy import DataParallel, Module, no_sync

__all__ = ["Worker"]

_ALONE = Membership(generation=0, rank=0, world_size=1)


class Worker:
    """One rank, as the user's program sees it.

    Args:
        config: the `config:` of the job: whatever the program wants to be told.
        seed: seed of the job: of the data order, and of every rank's random numbers.
        device: what this rank computes on; default: the accelerator of this process, else the CPU.
        membership: this rank's place; default: a world of one.

    Example:
        >>> worker = Worker(config={"lr": 0.1})
        >>> worker.rank, worker.world_size, worker.config["lr"]
        (0, 1, 0.1)
    """

    def __init__(
        self,
        *,
        config: Mapping[str, Any] | None = None,
        seed: int = 0,
        device: torch.device | None = None,
        membership: Membership = _ALONE,
    ) -> None:
        self.config: dict[str, Any] = dict(config or {})
        self.seed = seed
        self.device = device if device is not None else _own_device()
        self.membership = membership
        self.models = DataParallel(self.device)
        self.program: Program | None = None  # set when build() has returned
        self.samples = 0  # handed out by this rank's loaders
        self.batch_size = 1  # samples of this rank in the batch that was handed out last
        self._weight = 1.0

    @property
    def rank(self) -> int:
        """Number of this rank, 0 … world_size - 1."""
        return self.membership.rank

    @property
    def world_size(self) -> int:
        """Number of ranks that train together."""
        return self.membership.world_size

    @property
    def local_rank(self) -> int:
        """Number of this rank among those of its node."""
        return self.membership.local_rank

    @property
    def generation(self) -> int:
        """Number of the current membership; grows by one when ranks are replaced."""
        return self.membership.generation

    # ---------------------------------------------------------------- models and data
    def prepare(self, model: Module, **options: object) -> Module:
        """Move a model to this rank's device and spread it over the ranks with DistributedDataParallel.

        Args:
            model: a plain module. Make its optimizer from what this returns, or from the module: they share all.
            options: for DistributedDataParallel, e.g. `find_unused_parameters=True`.

        Returns:
            A handle that is used like the module, also after ranks were replaced.
        """
        return self.models.prepare(model, **options)

    def loader(
        self,
        dataset: SizedDataset,
        *,
        global_batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        **options: object,
    ) -> GlobalLoader:
        """This rank's batches of a data set, out of one global order that does not depend on the number of ranks.

        Args:
            dataset: map-style, with a length, the same on every rank.
            global_batch_size: samples per step over **all** ranks; each rank gets an equal share, up to one sample.
            shuffle: a new order in every pass, from the job's seed.
            drop_last: leave out the last batch of a pass if it is smaller.
            options: for torch's DataLoader: `num_workers`, `collate_fn`, `pin_memory` …

        Raises:
            ProgramError: the data is empty, or the batch is smaller than the world.
        """
        samples = len(dataset)
        if samples == 0:
            raise ProgramError("worker.loader: dataset: expected at least one sample, received an empty data set")
        if isinstance(global_batch_size, bool) or not isinstance(global_batch_size, int) or global_batch_size < 1:
            raise ProgramError(
                f"worker.loader: global_batch_size: expected a positive whole number, received {global_batch_size!r}"
            )
        if global_batch_size < self.world_size:
            raise ProgramError(
                f"worker.loader: global_batch_size: expected at least one sample for each of the {self.world_size} "
                f"ranks, received {global_batch_size}; it counts the samples of all ranks together: raise it, or use "
                "fewer workers"
            )
        if drop_last and samples < global_batch_size:
            raise ProgramError(
                f"worker.loader: drop_last: the data has {samples} samples, less than one batch of "
                f"{global_batch_size}, so nothing would be left; make the batch smaller, or keep the last one"
            )
        batches = GlobalBatches(
            samples=samples,
            batch_size=global_batch_size,
            shuffle=shuffle,
            seed=self.seed,
            drop_last=drop_last,
        )
        return GlobalLoader(
            dataset,
            batches,
            lambda: (self.rank, self.world_size),
            consumed=self._consume,
            **options,
        )

    def backward(self, loss: torch.Tensor) -> None:
        """`loss.backward()`, weighted so that the update is that of the whole global batch, however it is shared out.

        The loss is a mean over this rank's samples of the last batch that a loader handed out. DDP averages over ranks;
        with n of G samples on one of W ranks the weight n·W/G makes that the mean over all G samples.

        Args:
            loss: scalar tensor.

        Raises:
            ProgramError: a prepared model was called in evaluation mode, so its gradients would not be averaged.
        """
        if names := self.models.bypassed():
            raise ProgramError(
                f"worker.backward: expected prepared models in training mode, received {', '.join(names)} in "
                "evaluation mode, whose gradients would stay on this rank; call model.train() first in the step, "
                "and put single layers into evaluation mode after it"
            )
        weight = self._weight
        (loss if weight == 1.0 else loss * weight).backward()  # type: ignore[no-untyped-call]

    def no_sync(self, model: nn.Module) -> Any:
        """Inside this context gradients of a prepared model add up without an all-reduce."""
        return no_sync(model)

    # ---------------------------------------------------------------- collectives
    def all_reduce(self, value: Value, op: Op = "sum") -> Value:
        """Reduce a tensor or a number over all ranks ("sum", "mean", "min", "max", "product")."""
        return collectives.all_reduce(value, op, device=self.device)

    def all_gather(self, value: Value) -> list[Value]:
        """The values of all ranks, in the order of ranks."""
        return collectives.all_gather(value, device=self.device)

    def broadcast(self, value: Value, source: int = 0) -> Value:
        """The value of one rank, on every rank."""
        return collectives.broadcast(value, source, device=self.device)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        collectives.barrier()

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """Work inside this context starts without a batch, and leaves the batch and the models' modes as they were."""
        kept = self.batch_size, self._weight, self.samples
        self.batch_size, self._weight = 1, 1.0
        try:
            with self.models.modes_kept():
                yield
        finally:
            self.batch_size, self._weight, self.samples = kept

    def _consume(self, size: int, total: int) -> None:
        """A loader handed out a batch: `size` samples here, `total` over all ranks."""
        self.samples += size
        self.batch_size = size
        self._weight = size * self.world_size / total if total != size else 1.0


def _own_device() -> torch.device:
    """The accelerator of this process if there is one: Ray lends each worker its own, as device 0."""
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        if kind is not None:
            return torch.device(kind.type, 0)
    return torch.device("cpu")
