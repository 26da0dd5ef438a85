"""Step functions for engines: one supervised update, one supervised prediction; and pytorch-ignite's names for them.

A training step takes one batch, in pieces if gradients are accumulated, and makes one update of it: an iteration is an
optimizer step, whatever `accumulate` is, so that no gradient lies about between two iterations. The update is that of
the whole global batch in one process, however it is shared out over pieces and ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from workers.engine import Engine
from workers.errors import ProgramError
from workers.expected import check_arguments, checked_counts, checked_dtype, checked_loss
from workers.metrics.attach import attach_metric
from workers.microbatches import detached, floats_in, joined, split, to_device
from workers.worker import Worker

__all__ = [
    "Amp",
    "create_supervised_evaluator",
    "create_supervised_trainer",
    "supervised_eval_step",
    "supervised_train_step",
]

Amp = bool | Literal["bf16", "fp16", "amp"] | torch.dtype | None
"""Autocast: the dtype; True and "amp" are float16 with a scaler, else bfloat16. False and None: none."""
Batch = Callable[[Any, torch.device], tuple[Any, Any]]
Step = Callable[[Engine, Any], Any]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def supervised_train_step(  # noqa: PLR0913  # each is one thing that users of such steps expect
    model: nn.Module,
    optimizer: Optimizer,
    loss: Callable[[Any, Any], torch.Tensor],
    *,
    amp: Amp = None,
    accumulate: int = 1,
    clip: float | None = None,
    scaler: GradScaler | None = None,
    tokens: Callable[[Any, Any], torch.Tensor | int] | None = None,
    prepare_batch: Batch = to_device,
    output: Callable[[Any, Any, Any, torch.Tensor], Any] | None = None,
    worker: Worker | None = None,
) -> Step:
    """A process function that makes one update of each batch.

    Args:
        model: what `worker.prepare` returned.
        optimizer: of its parameters.
        loss: `loss(prediction, target)`, the mean over samples (over tokens, if `tokens` is given).
        amp: dtype in which the model computes: "bf16", "fp16", or True.
        accumulate: pieces in which a batch goes through the model, to save memory. The update stays the same.
        clip: the largest norm that the gradients together may have.
        scaler: for float16; put it into the program's `state` too.
        tokens: `tokens(x, target)` counts what the loss is a mean over, where samples differ in that; the update is
            then the mean over all tokens of the global batch. One number more is reduced over the ranks in each step.
        prepare_batch: `prepare_batch(batch, device)` gives (x, target).
        output: `output(x, target, prediction, loss)` makes what the step returns; default: the loss of this rank.
        worker: this rank; default: the engine's, or a world of one.

    Raises:
        ProgramError: an argument is not what it should be.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> trainer = Engine(supervised_train_step(model, optimizer, nn.functional.mse_loss, accumulate=2, clip=1.0))
        >>> state = trainer.run([(torch.ones(4, 2), torch.ones(4, 1))], max_epochs=3)
        >>> state.iteration
        3
    """
    check_arguments(accumulate, clip, scaler)
    step = _TrainStep(model, optimizer, loss, prepare_batch, output, worker)
    step.dtype = checked_dtype(_dtype_of(amp, scaler), scaler)
    step.pieces, step.clip, step.scaler, step.tokens = accumulate, clip, scaler, tokens
    return step


def supervised_eval_step(
    model: nn.Module,
    *,
    amp: Amp = None,
    prepare_batch: Batch = to_device,
    output: Callable[[Any, Any, Any], Any] = lambda x, y, y_pred: (y_pred, y),
    worker: Worker | None = None,
) -> Step:
    """A process function that predicts, without gradients and in evaluation mode.

    Args:
        model: what `worker.prepare` returned.
        amp: dtype in which it computes.
        prepare_batch: `prepare_batch(batch, device)` gives (x, target).
        output: `output(x, target, prediction)` makes what the step returns; default: (prediction, target), as metrics
            want it.
        worker: this rank; default: the engine's, or a world of one.

    Example:
        >>> evaluator = Engine(supervised_eval_step(nn.Linear(2, 1)))
        >>> state = evaluator.run([(torch.ones(4, 2), torch.ones(4, 1))])
        >>> [part.shape for part in state.output]
        [torch.Size([4, 1]), torch.Size([4, 1])]
    """
    dtype = _dtype_of(amp, None)

    @torch.no_grad()
    def step(engine: Engine, batch: Any) -> Any:
        device = _worker_of(worker, engine, model).device
        model.eval()
        x, y = prepare_batch(batch, device)
        with _autocast(device, dtype):
            y_pred = model(x)
        return output(x, y, y_pred)

    return step


def create_supervised_trainer(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Callable[[Any, Any], torch.Tensor],
    *,
    output_transform: Callable[[Any, Any, Any, torch.Tensor], Any] | None = None,
    amp_mode: Amp = None,
    gradient_accumulation_steps: int = 1,
    **options: Any,
) -> Engine:
    """An engine that trains, as in pytorch-ignite; `options` are those of `supervised_train_step`.

    Here `gradient_accumulation_steps` is in how many pieces each batch goes through the model: an iteration is an
    optimizer step. The output is the loss as a tensor, which is not waited for.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss, amp_mode="bf16")
    """
    step = supervised_train_step(
        model,
        optimizer,
        loss_fn,
        output=output_transform,
        amp=amp_mode,
        accumulate=gradient_accumulation_steps,
        **options,
    )
    return Engine(step)


def create_supervised_evaluator(
    model: nn.Module,
    metrics: Mapping[str, Any] | None = None,
    *,
    output_transform: Callable[[Any, Any, Any], Any] = lambda x, y, y_pred: (y_pred, y),
    amp_mode: Amp = None,
    **options: Any,
) -> Engine:
    """An engine that evaluates, as in pytorch-ignite, with metrics of torchmetrics attached by name.

    Example:
        >>> from torchmetrics import MeanSquaredError
        >>> evaluator = create_supervised_evaluator(nn.Linear(2, 1), {"mse": MeanSquaredError()})
        >>> sorted(evaluator.run([(torch.ones(4, 2), torch.ones(4, 1))]).metrics)
        ['mse']
    """
    engine = Engine(supervised_eval_step(model, output=output_transform, amp=amp_mode, **options))
    for name, metric in (metrics or {}).items():
        attach_metric(engine, name, metric)
    return engine


class _TrainStep:
    """One update for each batch; the arguments are those of `supervised_train_step`."""

    dtype: torch.dtype | None = None
    pieces = 1
    clip: float | None = None
    scaler: GradScaler | None = None
    tokens: Callable[[Any, Any], torch.Tensor | int] | None = None

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: Callable[[Any, Any], torch.Tensor],
        prepare_batch: Batch,
        output: Callable[[Any, Any, Any, torch.Tensor], Any] | None,
        worker: Worker | None,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._loss = loss
        self._prepare_batch = prepare_batch
        self._output = output
        self._worker = worker

    def __call__(self, engine: Engine, batch: Any) -> Any:
        worker = self._worker = _worker_of(self._worker, engine, self._model)
        self._model.train()
        x, y = self._prepare_batch(batch, worker.device)
        pieces = split((x, y), self.pieces)
        weights, shares = self._weigh(worker, pieces)
        self._optimizer.zero_grad(set_to_none=True)
        loss: torch.Tensor | None = None
        predictions = []
        for number, ((piece, _), weight, share) in enumerate(zip(pieces, weights, shares, strict=True), start=1):
            with contextlib.nullcontext() if number == len(pieces) else worker.no_sync(self._model):
                prediction, own = self._backward(worker, piece, weight)
            if self._output is not None:
                predictions.append(prediction)
            loss = own * share if loss is None else loss + own * share
        self._update()
        assert loss is not None, "a batch has at least one piece"
        if self._output is None:
            return loss
        kept = [prediction for prediction, (_, samples) in zip(predictions, pieces, strict=True) if samples]
        return self._output(x, y, joined(kept or predictions[:1]), loss)

    def _weigh(self, worker: Worker, pieces: list[tuple[Any, int]]) -> tuple[list[float], list[float]]:
        """By how much each piece counts in the global batch (times the world size), and in this rank's own loss."""
        counts: list[float] = [samples for _, samples in pieces]
        if self.tokens is None:
            shares = [count / sum(counts) for count in counts]
            return [worker.weight * share for share in shares], shares
        told = [self.tokens(*piece) if samples else 0 for piece, samples in pieces]
        counts = checked_counts(told)
        if not worker.weight:  # a stand-in: this rank has no sample of the global batch
            counts = [0.0 for _ in counts]
        own, everywhere = sum(counts) or 1.0, worker.all_reduce(sum(counts)) or 1.0
        return [count * worker.world_size / everywhere for count in counts], [count / own for count in counts]

    def _backward(self, worker: Worker, piece: tuple[Any, Any], weight: float) -> tuple[Any, torch.Tensor]:
        x, y = piece
        with _autocast(worker.device, self.dtype):
            prediction = self._model(x)
            loss = checked_loss(self._loss(prediction, y))
        if self.tokens is not None and not weight:  # the mean over no token is no number
            loss = sum((part.float() * 0).sum() for part in floats_in(prediction))  # type: ignore[assignment]
        worker.backward(loss if self.scaler is None else self.scaler.scale(loss), weight=weight)
        return detached(prediction), loss.detach()

    def _update(self) -> None:
        """Clip, and let the optimizer step."""
        optimizer, scaler = self._optimizer, self.scaler
        if self.clip is not None:
            if scaler is not None:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(_parameters_of(optimizer), self.clip)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()


def _worker_of(worker: Worker | None, engine: Engine, model: nn.Module) -> Worker:
    """The rank that a step runs on; one made by hand if there is no other, on the model's device."""
    if worker is None:
        worker = engine.worker
    if worker is None:
        parameter = next(model.parameters(), None)
        worker = Worker(device=torch.device("cpu") if parameter is None else parameter.device)
    return worker


def _autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[None]:
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def _dtype_of(amp: Amp, scaler: GradScaler | None) -> torch.dtype | None:
    if amp is None or amp is False:
        return None
    if amp is True or amp == "amp":
        return torch.bfloat16 if scaler is None else torch.float16
    dtype = _DTYPES.get(amp, amp) if isinstance(amp, str) else amp
    if dtype not in _DTYPES.values():
        raise ProgramError(
            f"amp: expected 'bf16', 'fp16' or True, received {amp!r}; leave it out to compute in the model's own dtype"
        )
    return dtype  # type: ignore[return-value]


def _parameters_of(optimizer: Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
