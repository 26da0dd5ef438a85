"""What a simulated run is: its workers, its program, what the driver's handlers do; drawn from a number."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Config", "Rule"]

CLASSES = 48  # so many different runs; each has an undisturbed one to be compared with


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A handler of the driver.

    Args:
        engine, event: what it listens to.
        every: at each so many counts.
        does: what it orders, in order; `schedule.py` says what each name means.
    """

    engine: str
    event: str
    every: int = 1
    does: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One run.

    Args:
        number: from which it was drawn.
        workers: as in a job file.
        limits: arguments of `run`.
        epoch_length: iterations.
        rules: handlers for which ranks wait.
        watched: events that are only watched.
        evaluation: batches of an evaluation.
        evaluates: whether `Evaluate` is attached.
        saves: arguments of `Checkpoint`; None: there is none.
        between: iterations from one snapshot between gates to the next; 0: none.
        buffers: whether a snapshot is a collective.
        rank_read: whether the program depends on its rank, so that a spare builds anew.
        moves: whether the storage can rename.
        nodes: of the cluster.
        room: workers for which there is room at once.
        leaks: whether words of a worker that was ended still come.
    """

    number: int
    workers: dict[str, Any]
    limits: dict[str, int]
    epoch_length: int
    rules: tuple[Rule, ...]
    watched: tuple[Rule, ...]
    evaluation: int
    evaluates: bool
    saves: dict[str, Any] | None
    between: int
    buffers: bool
    rank_read: bool
    moves: bool
    nodes: int
    room: int
    leaks: bool
    recovery: dict[str, Any] = field(default_factory=dict)

    @property
    def elastic(self) -> bool:
        return "min" in self.workers or "max" in self.workers

    @classmethod
    def draw(cls, number: int) -> Config:
        """The run of a number."""
        rng = random.Random(f"config {number}")
        workers: dict[str, Any] = {"count": rng.choice((1, 2, 2, 3, 3, 4)), "spares": rng.choice((0, 0, 1, 1, 2))}
        if rng.random() < 0.25:
            workers["min"] = rng.randint(1, workers["count"])
            workers["max"] = workers["count"] + rng.choice((0, 0, 1, 2))
        length = rng.randint(2, 5)
        limits = {"max_epochs": rng.randint(1, 3)}
        if rng.random() < 0.25:
            limits = {"max_iters": rng.randint(3, 12), "epoch_length": length}
        every: Any = rng.choice(({"epochs": 1}, {"epochs": 1}, {"iterations": rng.randint(1, 4)}, {"seconds": 0.3}))
        saves = {"every": every, "keep": rng.randint(1, 3), "on_save_error": rng.choice(("stop", "continue"))}
        total = workers.get("max", workers["count"]) + workers["spares"]
        return cls(
            number=number,
            workers=workers,
            limits=limits,
            epoch_length=length,
            rules=tuple(_rules(rng, length)),
            watched=tuple(_watched(rng)),
            evaluation=rng.randint(1, 3),
            evaluates=rng.random() < 0.5,
            saves=saves if rng.random() < 0.75 else None,
            between=rng.choice((0, 0, 1, 2, 3)),
            buffers=rng.random() < 0.5,
            rank_read=rng.random() < 0.3,
            moves=rng.random() < 0.7,
            nodes=rng.choice((1, 2, 3)),
            room=total + rng.choice((0, 0, 1, 3)),
            leaks=rng.random() < 0.3,
            recovery={
                "hang_timeout": 5.0,
                "restarts": {"crash": 100, "hang": 100, "network": 100, "oom": 100},
                **({"snapshots": "off"} if rng.random() < 0.1 else {}),
            },
        )


def _rules(rng: random.Random, length: int) -> list[Rule]:
    """Each event at which ranks may wait, with what is done there."""
    found = []
    events = (
        ("trainer", "STARTED", 0.3), ("trainer", "RESUMED", 0.2), ("trainer", "EPOCH_STARTED", 0.3),
        ("trainer", "ITERATION_STARTED", 0.15), ("trainer", "ITERATION_COMPLETED", 0.4),
        ("trainer", "EPOCH_COMPLETED", 0.7), ("trainer", "COMPLETED", 0.5),
        ("evaluator", "ITERATION_COMPLETED", 0.3), ("evaluator", "EPOCH_COMPLETED", 0.3),
    )  # fmt: skip
    for engine, event, chance in events:
        if rng.random() < chance:
            every = rng.randint(1, length) if event.startswith("ITERATION") else 1
            orders = ["bump", "bump one", "shift"]
            if engine == "trainer" and event not in ("ITERATION_STARTED", "RESUMED"):
                orders += ["evaluate", "save", "save and wait"]
            does = () if event == "RESUMED" else tuple(rng.choices(orders, k=rng.choice((0, 1, 1, 2, 3))))
            found.append(Rule(engine=engine, event=event, every=every, does=does))
    if rng.random() < 0.15:
        found.append(Rule(engine="trainer", event="ITERATION_COMPLETED", every=rng.randint(2, 7), does=("terminate",)))
    return found


def _watched(rng: random.Random) -> list[Rule]:
    events = (("trainer", "ITERATION_COMPLETED"), ("trainer", "EPOCH_STARTED"), ("evaluator", "ITERATION_COMPLETED"))
    return [
        Rule(engine=engine, event=event, every=rng.randint(1, 2)) for engine, event in events if rng.random() < 0.35
    ]
