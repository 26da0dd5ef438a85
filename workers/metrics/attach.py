"""Hang a metric on an engine: reset at the epoch's start, updated after every iteration, computed at its end.

The engine then holds this rank's value in `state.metrics`; at a gate the driver replaces it by the exact value over all
ranks. A metric never starts a collective of its own. torchmetrics is imported where it is used: it takes longer than
all the rest of a rank's start, and a program without metrics need not wait for it.
"""

from __future__ import annotations

import copy
import difflib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from workers.engine import Engine
from workers.errors import ProgramError
from workers.events import Events
from workers.metrics.pack import metrics_in, pack_metric
from workers.metrics.running import AttachedAverage, RunningAverage
from workers.parcels import MetricPack

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection

    from workers.metrics.measure import Measure

__all__ = ["AttachedMetric", "attach_metric"]

Output = Callable[[object], object]
_logger = logging.getLogger(__name__)
_PLAIN = {"mean": "MeanMetric", "sum": "SumMetric", "min": "MinMetric", "max": "MaxMetric"}


class AttachedMetric:
    """One metric on one engine; made by `attach_metric`."""

    def __init__(self, name: str, metric: Metric, output: Output | None) -> None:
        self.name = name
        self.metric = metric
        self.samples: Callable[[], int] | None = None  # of this rank in the current batch; None if nobody knows
        self.shared: Callable[[], bool] = lambda: False  # whether other ranks have parts of the same data
        self._output = output
        self._is_mean = _is_mean(metric)
        self._seen = False  # some wrappers do not count their updates

    def reset(self) -> None:
        """Forget what was seen."""
        self.metric.reset()
        self._seen = False

    def update(self, engine: Engine) -> None:
        """Take in the output of the iteration that just ended."""
        samples = 1 if self.samples is None else self.samples()
        if samples == 0:  # a stand-in batch, there only so that this rank takes part in the step
            return
        seen, self._seen = _measured(self.name, self._output, engine.state.output), True
        if isinstance(seen, Mapping):
            self.metric.update(**{key: self._placed(value) for key, value in seen.items()})
        elif isinstance(seen, tuple):
            self.metric.update(*(self._placed(value) for value in seen))
        elif self._is_mean and _is_number(seen):
            self.metric.update(self._placed(seen), weight=samples)  # a batch's mean stands for all its samples
        else:
            self.metric.update(self._placed(seen))

    @property
    def updated(self) -> bool:
        """Whether it has seen data since the last reset; of what is composed, the parts with states know."""
        return self._seen or self._counted()

    def compute(self, engine: Engine) -> None:
        """Put this rank's value into `engine.state.metrics`; where there are other ranks, only if there is one."""
        if not self.updated:
            return
        try:
            engine.state.metrics[self.name] = plain_value(self.metric.compute())
        except Exception as error:
            if not self.shared():
                raise
            engine.state.metrics.pop(self.name, None)  # this rank's part may be too small; the whole need not be
            _logger.debug("metric %r has no value on this rank alone: %s", self.name, error)

    def pack(self) -> MetricPack:
        """This rank's state of the metric."""
        pack = pack_metric(self.metric)
        if self._seen and not self._counted():  # what was updated must not be taken for empty where it is merged
            return MetricPack(parts={path: (states, 1) for path, (states, _) in pack.parts.items()})
        return pack

    def state_dict(self) -> dict[str, object]:
        """The accumulated states, so that an epoch's metric survives a resume in its middle."""
        return {path: {"states": dict(states), "updates": n} for path, (states, n) in self.pack().parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up states that `state_dict` gave."""
        for path, module in metrics_in(self.metric):
            if path in state:
                for name, value in state[path]["states"].items():
                    setattr(module, name, self._placed(copy.deepcopy(value)))  # updates work in place
                module._update_count = state[path]["updates"]
                module._computed = None

    def _counted(self) -> bool:
        return any(module._update_count for _, module in metrics_in(self.metric) if module._defaults)

    def _placed(self, value: Any) -> Any:
        """Tensors where the metric lives; everything else as it is."""
        if isinstance(value, torch.Tensor):
            return value.detach().to(self.metric.device)
        if isinstance(value, list):
            return [self._placed(item) for item in value]
        return value


def attach_metric(
    engine: Engine,
    name: str,
    metric: Metric | MetricCollection | RunningAverage | Measure | str,
    *,
    output: Output | None = None,
) -> None:
    """Compute a metric of every epoch of an engine.

    Args:
        engine: the engine whose `state.output` is measured.
        name: its name in `state.metrics`; the members of a collection are called `name/member`.
        metric: a torchmetrics metric or collection; one of "mean", "sum", "min", "max" for a plain number; a
            `RunningAverage`; or a metric of your own, with `start`, `update` and `compute` (`Measure`).
        output: takes `state.output` and gives what the metric's `update` wants: one value, a tuple of positional
            arguments, or a mapping of keyword arguments. Default: the output itself.

    Raises:
        TypeError: `metric` is none of these.
        ValueError: the word is not known, the metric depends on the order of updates (`Running`, `MinMaxMetric`), the
            engine already has something of that name, or the same object under another, or the name can't be one.

    Example:
        >>> trainer = Engine(lambda engine, batch: {"loss": batch})
        >>> attach_metric(trainer, "loss", "mean", output=lambda out: out["loss"])
        >>> trainer.run([1.0, 3.0]).metrics["loss"]
        2.0
    """
    from torchmetrics import MetricCollection

    _check_name(name)
    if isinstance(metric, MetricCollection):
        for member, inner in metric.items(keep_base=True, copy_state=True):
            attach_metric(engine, f"{name}/{member}", inner.clone(), output=output)
        return
    if isinstance(metric, RunningAverage):
        average = AttachedAverage(name, metric.alpha, partial(_measured, name, output))
        engine.attach(name, average)
        engine.add_phase_handler("metrics", Events.ITERATION_COMPLETED, average.update)
        return
    attached = AttachedMetric(name, _as_metric(name, metric), output)
    _refuse_ordered(name, attached.metric)
    _refuse_shared(engine, name, attached.metric)
    for _, module in metrics_in(attached.metric):
        module.sync_on_compute = module._to_sync = False  # the first alone takes effect only after a forward()
    engine.attach(name, attached)
    engine.add_phase_handler("metrics", Events.EPOCH_STARTED, attached.reset)
    engine.add_phase_handler("metrics", Events.ITERATION_COMPLETED, attached.update)
    engine.add_phase_handler("metrics", Events.EPOCH_COMPLETED, attached.compute)


def _measured(name: str, given: Output | None, output: object) -> object:
    """What `output=` makes of an output."""
    if given is None:
        return output
    try:
        return given(output)
    except Exception as error:
        what = "None; does it end with return?" if output is None else f"a value of type {type(output).__name__}"
        raise ProgramError(
            f"metric {name!r}: output= raised {type(error).__name__}: {error}, on what the step returned: {what}"
        ) from error


def plain_value(value: object) -> object:
    """A Python number for a tensor of one element; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.item() if value.numel() == 1 else value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: plain_value(item) for key, item in value.items()}
    return value


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ValueError(
            f"attach_metric(name): expected a text of printable characters, received {name!r} ({type(name).__name__}); "
            "write for example 'loss'"
        )


def _refuse_shared(engine: Engine, name: str, metric: Metric) -> None:
    """Refuse an object that is updated under another name too: each would count what the other saw."""
    own = {id(module) for _, module in metrics_in(metric)}
    for known, attached in engine.attached.items():
        if known != name and isinstance(attached, AttachedMetric):
            if own.isdisjoint(id(module) for _, module in metrics_in(attached.metric)):
                continue
            raise ValueError(
                f"attach_metric({name!r}): metric: expected one that is attached once, received a "
                f"{type(metric).__name__} that this engine has as {known!r}; write metric.clone(), or make another"
            )


def _is_mean(metric: Metric) -> bool:
    from torchmetrics import MeanMetric

    return isinstance(metric, MeanMetric)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.numel() == 1)


def _refuse_ordered(name: str, metric: Metric) -> None:
    """Refuse what would have to know the order of all ranks' updates: a window of the last ones, extremes over time."""
    from torchmetrics.wrappers import MinMaxMetric, Running

    for _, module in metrics_in(metric):
        if isinstance(module, MinMaxMetric | Running):
            raise ValueError(
                f"attach_metric({name!r}): metric: expected one whose states of several ranks can be merged exactly, "
                f"received {type(module).__name__}, which depends on the order of all updates; attach the metric "
                "inside, and follow its values in a handler of EPOCH_COMPLETED"
            )


def _as_metric(name: str, metric: Metric | Measure | str) -> Metric:
    import torchmetrics

    from workers.metrics.measure import MeasureMetric

    if isinstance(metric, torchmetrics.Metric):
        return metric
    if all(callable(getattr(metric, method, None)) for method in ("start", "update", "compute")):
        return MeasureMetric(metric)  # type: ignore[arg-type]  # it has what a measure has
    if not isinstance(metric, str):
        raise TypeError(
            f"attach_metric({name!r}): metric: expected a torchmetrics metric or collection, or one of "
            f"{', '.join(map(repr, _PLAIN))}, received {metric!r} ({type(metric).__name__}); a function of yours goes "
            "to output="
        )
    if metric not in _PLAIN:
        near = difflib.get_close_matches(metric, _PLAIN, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "or give a metric of torchmetrics"
        raise ValueError(
            f"attach_metric({name!r}): metric: expected one of {', '.join(_PLAIN)}, received {metric!r}; {hint}"
        )
    made: Metric = getattr(torchmetrics, _PLAIN[metric])()
    return made
