"""What the driver itself notes, in a checkpoint: states of its handlers, metrics by name, what was what in the config.

Of the config only digests are noted, since a value may be a secret. Used by `ordering.py` when it saves, and by
`training.py` when a run goes on; also for what ranks say of themselves as a save begins, and where one may begin.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from orchestrator.checkpoints.committed import Committed
from orchestrator.cluster_events import CheckpointCommitted
from orchestrator.errors import SpecError, explain, name_ranks
from orchestrator.journal import OF_EVERY_LINE
from orchestrator.passed import OpenGate
from orchestrator.roll_call import Asked
from workers.boundary import at_boundary
from workers.parcels import TRAINER

__all__ = [
    "as_told", "changed_config", "check_boundary", "check_fields", "check_names", "differing", "digests_of", "of_now",
    "states_of",
]  # fmt: skip

TOLD = 8  # keys that are told by name


def check_boundary(gates: Sequence[OpenGate], asked: Sequence[Asked]) -> None:
    """See that a save which begins now finds the state of a boundary: not in a step, nor in an evaluation.

    Args:
        gates: those that are open, the outermost first.
        asked: orders that are being carried out.

    Raises:
        SpecError: it would not.
    """
    if not gates:
        return  # who asks the ranks says so
    here = gates[-1]
    keys = [gate.key for gate in gates if gate.present or gate is here]
    within = next((key for key in keys if not at_boundary(key)), None)
    order = next((order.what for order in asked if order.outer == here.key), None)
    if within is None and order is None:
        return
    if within is not None and within.engine == TRAINER:
        received = f"{within}, with an iteration in progress"
        mend = "do it at ITERATION_COMPLETED, or at the end of an epoch"
    else:
        received = f"{order} in progress" if within is None else f"{within}, in the middle of an evaluation"
        mend = "do it behind that: when evaluate or call has returned, or at the trainer's EPOCH_COMPLETED"
    expected = "all ranks between two iterations of the trainer"
    raise SpecError(explain("orchestrator.checkpoint", expected=expected, received=received, mend=mend))


def check_names(metrics: Mapping[str, object]) -> None:
    """See that metrics can be noted by name.

    Args:
        metrics: of the driver's state.

    Raises:
        SpecError: a name is no text.
    """
    for name in metrics:
        if not isinstance(name, str):
            raise SpecError(
                explain(
                    f"run.metrics[{name!r}]",
                    expected="a text as the name of a metric",
                    received=f"{name!r} ({type(name).__name__})",
                    mend=f"name it {f'metric/{name}'!r}, for example",
                )
            )


def check_fields(event: str, fields: Iterable[str]) -> None:
    """See that a line of the user's in the journal leaves alone what every line says.

    Args:
        event: the line's.
        fields: names of what stands in it beside that.

    Raises:
        SpecError: a name is taken.
    """
    if taken := sorted(OF_EVERY_LINE.intersection(fields)):
        raise SpecError(
            explain(
                f"orchestrator.note({event!r})",
                expected="names that are not those of every line",
                received=", ".join(map(repr, taken)),
                mend=f"call it {taken[0]}_ or the like",
            )
        )


def digests_of(config: Mapping[str, object], above: str = "") -> dict[str, str]:
    """Dotted key → digest of its value, for all values that JSON can hold.

    Args:
        config: the job's.
        above: what stands before its keys.

    Example:
        >>> sorted(digests_of({"lr": 0.1, "model": {"hidden": 64, "loss": print}}))
        ['lr', 'model.hidden']
    """
    found: dict[str, str] = {}
    for key, value in config.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            found.update(digests_of(value, f"{name}."))
            continue
        try:
            text = json.dumps(value, sort_keys=True)
        except (TypeError, ValueError, RecursionError):
            continue
        found[name] = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:12]
    return found


def changed_config(then: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """Which keys of the config are not what they were at a checkpoint, in words; None if all are.

    Args:
        then: digests of the config with which it was made.
        now: those of the config that goes on.

    Example:
        >>> changed_config(digests_of({"lr": 0.1, "seed": 1}), digests_of({"lr": 0.2, "seed": 1, "warm": True}))
        'lr, warm (new)'
    """
    words = [name for name in then if name in now and then[name] != now[name]]
    words += [f"{name} (new)" for name in now if name not in then]
    words += [f"{name} (gone)" for name in then if name not in now]
    told = ", ".join(sorted(words)[:TOLD])
    return f"{told} and {len(words) - TOLD} more" if len(words) > TOLD else told or None


def differing(settings: Mapping[int, Mapping[str, Mapping[str, str]]]) -> str | None:
    """What is not set alike on all ranks in the optimizers and schedulers, in words; None if all is.

    Args:
        settings: rank → entry of the state → setting → value, as text.

    Example:
        >>> differing({0: {"adam": {"lr": "0.1"}}, 1: {"adam": {"lr": "0.1"}}, 2: {"adam": {"lr": "0.05"}}})
        "state 'adam': lr is 0.1 on ranks 0-1, 0.05 on rank 2"
    """
    words = []
    names = dict.fromkeys((entry, name) for of in settings.values() for entry in of for name in of[entry])
    for entry, name in names:
        ranks: dict[str, list[int]] = {}
        for rank, of in sorted(settings.items()):
            ranks.setdefault(of.get(entry, {}).get(name, "not there"), []).append(rank)
        if len(ranks) > 1:
            told = ", ".join(f"{value} on {name_ranks(those)}" for value, those in list(ranks.items())[:TOLD])
            words.append(f"state {entry!r}: {name} is {told}")
    return "; ".join(words[:TOLD]) or None


def states_of(handlers: Mapping[str, Any]) -> dict[str, Any]:
    """The states of the driver's handlers, which go into the manifest.

    Args:
        handlers: name → handler with a `state_dict()`.

    Raises:
        SpecError: one of them is not what JSON can hold; names the handler.
    """
    states = {name: handler.state_dict() for name, handler in handlers.items()}
    for name, state in states.items():
        try:
            json.dumps(state)
            _check_keys(state)
        except (TypeError, ValueError) as error:
            raise SpecError(
                explain(
                    f"orchestrator.checkpoint: state_dict() of handler {name}",
                    expected="numbers, texts, lists and dictionaries of them by texts, which JSON can hold",
                    received=f"something else: {error}",
                    mend="leave it out, or give its parts",
                )
            ) from error
    return states


def _check_keys(state: object) -> None:
    """JSON makes texts of all keys, so others would not come back as they were."""
    if isinstance(state, Mapping):
        if strange := [key for key in state if not isinstance(key, str)]:
            raise TypeError(f"key {strange[0]!r} is no text")
        for value in state.values():
            _check_keys(value)
    elif isinstance(state, list | tuple):
        for value in state:
            _check_keys(value)


def of_now(
    metrics: Mapping[str, Any], evaluated: Mapping[str, int], prefixes: Collection[str], iteration: int
) -> dict[str, Any]:
    """Metrics without what an evaluation measured at another iteration: that was another model.

    Args:
        metrics: of the driver's state, by name.
        evaluated: metric of an evaluation → iteration at which it was measured last.
        prefixes: with which names of metrics of evaluations begin, whether they were measured or not.
        iteration: of now.

    Example:
        >>> of_now({"loss": 0.5, "validation/accuracy": 0.9}, {"validation/accuracy": 10}, (), 20)
        {'loss': 0.5}
    """
    of_evaluations = {name.partition("/")[0] for name in evaluated} | set(prefixes)
    return {
        name: value
        for name, value in metrics.items()
        if name.partition("/")[0] not in of_evaluations or evaluated.get(name) == iteration
    }


def as_told(checkpoint: Committed) -> CheckpointCommitted:
    """What handlers are told of a checkpoint."""
    manifest = checkpoint.manifest
    return CheckpointCommitted(
        name=checkpoint.name,
        url=checkpoint.url,
        epoch=manifest.epoch,
        iteration=manifest.iteration,
        size=manifest.size,
        metrics=dict(manifest.metrics),
    )
