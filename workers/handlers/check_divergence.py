"""End the run when ranks that should hold the same model do not: a flipped bit, a model that one rank changed alone.

Each rank makes a digest of its parameters on its device; one all-gather of 8 bytes compares them, so that all learn of
it at the same iteration. Who is odd is found at the driver, from the digests of single parameters (`compare`); what it
makes of it is in `orchestrator/guard.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch

from workers.digests import digest_of
from workers.engine import Engine
from workers.errors import DivergedError
from workers.events import Event, Events
from workers.handlers.ranks import Ranks, in_step, interval
from workers.parameters import named_optimizer_states, named_parameters

__all__ = ["DIVERGED", "CheckDivergence", "Divergence", "compare", "digest_each", "digest_one"]

DIVERGED = Event("DIVERGED")
"""Fires once, on all ranks, when their models were found to differ; the run ends here."""

Digests = Sequence[tuple[str, int]]
"""Name of a tensor and its digest, in the same order on all ranks."""


class CheckDivergence:
    """Compare what should be equal on all ranks: the parameters of the prepared models, bit by bit.

    With `orchestrator.attach`, or `orchestrator.check_divergence`, it runs on every rank, and ranks are compared before
    each save as well, so that no checkpoint mixes states that differ. Ranks must compute alike: different kinds of
    devices may round differently, which is found too.

    Args:
        every: compare after each so many iterations.
        optimizer: compare what the optimizers remember, too.

    Raises:
        ValueError: `every` is no such number.

    Example:
        >>> orchestrator.attach(CheckDivergence(every=100))  # doctest: +SKIP
    """

    def __init__(self, every: int = 500, *, optimizer: bool = False) -> None:
        self.every = interval("CheckDivergence", every)
        self.optimizer = optimizer

    def attach(self, target: Engine | Ranks) -> None:
        """Run on this engine; at the orchestrator on every rank."""
        event = Events.ITERATION_COMPLETED(every=self.every)
        if isinstance(target, Engine):
            target.add_event_handler(event, self)
        else:
            target.on(event, rank="all")(self)

    def __call__(self, engine: Engine) -> None:
        """Compare; a rank that trains alone has nobody to differ from.

        Raises:
            DivergedError: ranks differ, and no driver has ended the run at that.
        """
        state: Any = engine.state  # where they were equal last is left there, for `digest_each`
        worker = engine.worker
        if state.iteration % self.every or not in_step(engine):
            return
        own = digest_of((tensor for _, tensor in _compared(worker, self.optimizer)), worker.device)
        if len(set(torch.stack(worker.all_gather(own)).tolist())) == 1:
            state.ranks_agreed_at = state.iteration
            return
        engine.fire_event(DIVERGED)
        raise DivergedError(
            f"iteration {state.iteration}: expected the same parameters on all ranks, received some that differ; "
            "attach CheckDivergence at the driver to learn which ranks are odd"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """How ranks differ.

    Args:
        odd: ranks that differ from more than half of all; all of them, where no half of them agrees.
        first: name of the first tensor that is not the same on all.
        differing: how many are not.
        tensors: how many there are.
    """

    odd: tuple[int, ...]
    first: str
    differing: int
    tensors: int


def compare(digests: Sequence[Digests]) -> Divergence | None:
    """Find the odd ranks; None if all hold the same.

    Args:
        digests: of every rank, in the order of ranks.

    Example:
        >>> compare([[("w", 1), ("b", 2)], [("w", 1), ("b", 3)], [("w", 1), ("b", 2)]])
        Divergence(odd=(1,), first='b', differing=1, tensors=2)
    """
    whole = [tuple(one) for one in digests]
    (most, holders), *others = Counter(whole).most_common()
    if not others:
        return None
    majority = holders * 2 > len(whole)
    odd = tuple(rank for rank, one in enumerate(whole) if not majority or one != most)
    unlike = [next(filter(None, row))[0] for row in zip_longest(*whole) if len(set(row)) > 1]
    return Divergence(odd=odd, first=unlike[0], differing=len(unlike), tensors=max(map(len, whole)))


def digest_one(worker: Any, optimizer: bool) -> int:
    """One digest of all that is compared on this rank."""
    return int(digest_of((tensor for _, tensor in _compared(worker, optimizer)), worker.device))


def digest_each(worker: Any, optimizer: bool) -> tuple[Digests, int | None]:
    """The digests of all that is compared on this rank, one by one; and the iteration after which all were equal."""
    digests = [(name, int(digest_of([tensor], worker.device))) for name, tensor in _compared(worker, optimizer)]
    return digests, worker.program.engines["trainer"].state.get("ranks_agreed_at")


def _compared(worker: Any, optimizer: bool) -> Iterator[tuple[str, torch.Tensor]]:
    state = worker.program.state
    yield from named_parameters(worker.models, state)
    if optimizer:
        yield from named_optimizer_states(worker.models, state)
