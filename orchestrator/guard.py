"""Whether what the ranks hold is worth keeping: numbers that are not finite, models that differ from rank to rank.

The handlers that look for it run on the ranks (`workers/handlers`) and fire an event there, at which all ranks wait;
here their findings become one error. Before each save the ranks are asked as well. Called by the orchestrator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from orchestrator.errors import DivergenceError, NotFiniteError
from orchestrator.verdict import Facts
from workers.handlers.check_divergence import CheckDivergence, compare, digest_each, digest_one
from workers.handlers.terminate_on_nan import TerminateOnNan, nonfinite_found, nonfinite_parameters

__all__ = ["divergence", "not_finite", "unfit"]

Call = Callable[..., Any]
"""`orchestrator.call`: a function on all ranks, what it returned in the order of ranks."""


def not_finite(call: Call, iteration: int) -> NotFiniteError:
    """What ranks found, while they wait at NOT_FINITE."""
    return NotFiniteError.at(iteration, _some(call(nonfinite_found)))


def divergence(call: Call, iteration: int, facts: Facts) -> DivergenceError | None:
    """How the ranks' models differ, while they wait at a gate; None if they do not.

    Args:
        call: how to ask the ranks.
        iteration: that all have completed.
        facts: where they run.
    """
    for optimizer in (False, True):  # parameters say more than what optimizers keep of their gradients
        told = call(digest_each, optimizer)
        found = compare([digests for digests, _ in told])
        if found is not None:
            several = f"{found.first} is the first of {found.differing} tensors that differ, of {found.tensors}"
            only = f"{found.first} differs, one of {found.tensors} tensors"
            what = several if found.differing > 1 else only
            odd = [_placed(rank, facts) for rank in found.odd]
            return DivergenceError.at(iteration, odd=odd, what=what, agreed=told[0][1])
    return None


def unfit(
    handlers: Iterable[object], call: Call, iteration: int, facts: Facts
) -> NotFiniteError | DivergenceError | None:
    """Why the state at this gate must not be saved; None if nothing speaks against it.

    Args:
        handlers: those that are attached; each that guards against something has the ranks asked for it.
        call: how to ask them.
        iteration: that all have completed.
        facts: where they run.
    """
    for handler in handlers:
        if isinstance(handler, TerminateOnNan) and (found := _some(call(nonfinite_parameters))):
            return NotFiniteError.at(iteration, found)
        if isinstance(handler, CheckDivergence) and len(set(call(digest_one, handler.optimizer))) > 1:
            return divergence(call, iteration, facts)
    return None


def _some(found: Iterable[str]) -> Mapping[int, str]:
    """Rank → what it found, for those that found something."""
    return {rank: what for rank, what in enumerate(found) if what}


def _placed(rank: int, facts: Facts) -> str:
    worker = next((worker for worker, known in facts.ranks.items() if known == rank), rank)
    place = facts.places.get(worker)
    return f"rank {rank}" if place is None else f"rank {rank} (pid {place.pid} on {place.host})"
