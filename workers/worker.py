"""What `build(worker)` receives: who this rank is, what it computes on, and the few verbs that need to know both.

A `Worker` can be made by hand (`Worker()`) to try a program in a notebook: a world of one, without any process group.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any, overload

import torch
from torch import nn

from workers import collectives
from workers.collectives import Op, Value
from workers.data.fetching import SizedDataset
from workers.data.loader import GlobalLoader
from workers.data.opening import Wish, open_source
from workers.data.sources import HandedOut, RankBatches, TorchBatches
from workers.devices import accelerator, choose
from workers.errors import ProgramError
from workers.program import Program, hint
from workers.rank import Membership
from workers.strategy import DataParallel, Module, Strategy, no_sync

__all__ = ["Worker"]

_logger = logging.getLogger(__name__)
_ALONE = Membership(generation=0, rank=0, world_size=1)


class Worker:
    """One rank, as the user's program sees it.

    Args:
        config: the `config:` of the job: whatever the program wants to be told.
        seed: seed of the job: of the data order, and of every rank's random numbers.
        device: what this rank computes on; default: the accelerator of this process, else the CPU.
        membership: this rank's place; default: a world of one.
        datasets: this rank's part of the data sets that were registered at the driver, by name.
        formed: whether the process group is there already.

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
        datasets: Mapping[str, TorchBatches] | None = None,
        formed: bool = False,
    ) -> None:
        self.config: dict[str, Any] = dict(config or {})
        self.seed = seed
        self.device = choose(accelerator(), None) if device is None else device
        self.membership = membership
        self.datasets = dict(datasets or {})
        self.models = DataParallel(self.device, alone=membership.world_size == 1, formed=formed)
        self.program: Program | None = None  # set when build() has returned
        self.samples = 0  # handed out by this rank's loaders
        self.batch_size = 1  # samples of this rank in the batch that was handed out last
        self.rank_read = False  # whether anybody asked for it; what is built by rank is built anew for another one
        self.told: Callable[[str], None] = _logger.warning  # of what broke in this process, and was mended
        self.busy = 0.0  # seconds between one `backward` and the next: there no rank waits for another
        self._left: float | None = None  # when the last `backward` ended
        self._weight = 1.0

    @property
    def rank(self) -> int:
        """Number of this rank, 0 … world_size - 1."""
        self.rank_read = True
        return self.membership.rank

    @property
    def world_size(self) -> int:
        """Number of ranks that train together."""
        return self.membership.world_size

    @property
    def local_rank(self) -> int:
        """Number of this rank among those of its node."""
        self.rank_read = True
        return self.membership.local_rank

    @property
    def generation(self) -> int:
        """Number of the current membership; grows by one when ranks are replaced."""
        return self.membership.generation

    # ---------------------------------------------------------------- models and data
    def prepare(
        self,
        model: Module,
        strategy: Strategy = "ddp",
        *,
        activation_checkpointing: Sequence[type[nn.Module]] = (),
        compile: bool | dict[str, Any] = False,  # the name that torch gives it
        sync_batchnorm: bool = False,
        **options: Any,
    ) -> Module:
        """Move a model to this rank's device and spread it over the ranks.

        Args:
            model: a plain module. Make its optimizer from what this returns, or from the module: they share all.
            strategy: "ddp": every rank holds all of it, and gradients are averaged. "fsdp": its parameters are shared
                out with torch's FSDP2; `build` is then called again when the ranks have met, and each time that they
                meet anew. "none": each rank has its own.
            activation_checkpointing: classes of its parts whose activations are computed again in the backward pass.
            compile: run it through `torch.compile`, with these arguments if it is a dictionary; not with "fsdp".
            sync_batchnorm: have BatchNorm see the batches of all ranks; not on the CPU.
            options: for "ddp" those of DistributedDataParallel, such as `find_unused_parameters=True`, `static_graph`
                or `bucket_cap_mb`, and `compression="bf16"` for what gradients are sent in; for "fsdp" see `Fsdp`:
                `shard_each`, `mixed_precision`, `offload`, `reshard_after_forward`, `broadcast_buffers`.

        Returns:
            A handle that is used like the module, also after ranks were replaced.

        Raises:
            ProgramError: an option can't be.
        """
        return self.models.prepare(
            model,
            strategy=strategy,
            activation_checkpointing=activation_checkpointing,
            compile=compile,
            sync_batchnorm=sync_batchnorm,
            **options,
        )

    @overload
    def loader(
        self,
        source: SizedDataset,
        *,
        global_batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        **options: Any,
    ) -> GlobalLoader: ...

    @overload
    def loader(
        self, source: TorchBatches, *, global_batch_size: int, drop_last: bool = False, **options: Any
    ) -> RankBatches: ...

    @overload
    def loader(self, source: Iterable[Any]) -> RankBatches | HandedOut: ...

    def loader(
        self,
        source: SizedDataset | TorchBatches | Iterable[Any],
        *,
        global_batch_size: int | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        **options: Any,
    ) -> GlobalLoader | RankBatches | HandedOut:
        """This rank's batches of some data; saved and resumed with the run.

        Of a map-style data set each rank gets its share, out of one global order that does not depend on the number of
        ranks. Of anything else each rank reads the batches that its own source gives.

        Args:
            source: a map-style data set, the same on every rank; or any iterable of batches, such as a torch DataLoader
                (read up to its place on resume); or one with `state_dict` and `load_state_dict`, such as torchdata's
                StatefulDataLoader (resumes exactly); or a rank's part of a Ray data set, see `dataset`.
            global_batch_size: samples per step over **all** ranks; each rank gets an equal share, up to one sample.
                Not for sources that bring batches.
            shuffle: a new order in every pass, from the job's seed. Only for map-style data sets.
            drop_last: leave out the last batch of a pass if it is smaller. Not for sources that bring batches.
            options: for torch's DataLoader: `num_workers`, `collate_fn`, `pin_memory` …; or for `iter_torch_batches`.

        Raises:
            ProgramError: the source is none of these, the data is empty, the batch is smaller than the world, or an
                argument does not fit the source.
        """
        wish = Wish(global_batch_size=global_batch_size, shuffle=shuffle, drop_last=drop_last, options=options)
        return open_source(
            source,
            wish,
            seed=self.seed,
            membership=lambda: (self.rank, self.world_size),
            consumed=self._consume,
            told=lambda text: self.told(text),
        )

    def dataset(self, name: str) -> TorchBatches:
        """This rank's part of a Ray data set that was registered with `orchestrator.dataset(name, ds)`.

        All ranks together see each row once a pass. Give it to `loader`, with a `global_batch_size`. Its order is Ray
        Data's own, so a resumed run reads up to its place, but may meet other rows there than the run before.

        Args:
            name: as it was registered.

        Raises:
            ProgramError: there is none of that name.

        Example:
            >>> worker.loader(worker.dataset("train"), global_batch_size=64)  # doctest: +SKIP
        """
        if name not in self.datasets:
            raise ProgramError(
                f"worker.dataset({name!r}): expected a name that was registered with orchestrator.dataset(name, ds), "
                f"received {name!r}; {hint(name, self.datasets)}"
            )
        return self.datasets[name]

    @property
    def weight(self) -> float:
        """By how much the last batch's loss counts: n·W/G for n of G samples on one of W ranks; 1: nobody knows."""
        return self._weight

    def backward(self, loss: torch.Tensor, *, weight: float | None = None) -> None:
        """`loss.backward()`, weighted so that the update is that of the whole global batch, however it is shared out.

        The loss is a mean over this rank's samples of the last batch that a loader handed out. DDP averages over ranks;
        with n of G samples on one of W ranks the weight n·W/G makes that the mean over all G samples. Where every rank
        brings its own batches (a DataLoader, a Stateful loader, Ray Data) nobody knows G: the weight is 1.

        Args:
            loss: scalar tensor.
            weight: instead of n·W/G, where the loss is of a part of the batch, or no mean over samples.

        Raises:
            ProgramError: a prepared model was called in evaluation mode, so its gradients would not be averaged.
        """
        if names := self.models.bypassed():
            raise ProgramError(
                f"worker.backward: expected prepared models in training mode, received {', '.join(names)} in "
                "evaluation mode, whose gradients would stay on this rank; call model.train() first in the step, "
                "and put single layers into evaluation mode after it"
            )
        weight, began = self._weight if weight is None else weight, perf_counter()
        if self._left is not None:
            self.busy += began - self._left
        (loss if weight == 1.0 else loss * weight).backward()  # type: ignore[no-untyped-call]
        self._left = perf_counter()

    def waited(self) -> None:
        """The time since the last `backward` was spent waiting, not working."""
        self._left = perf_counter()

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
        """A loader handed out a batch: `size` samples here, `total` over all ranks; 0: nobody knows."""
        self.samples += size
        self.batch_size = size
        self._weight = size * self.world_size / total if total else 1.0
