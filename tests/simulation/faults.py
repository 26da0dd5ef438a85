"""What goes wrong in a simulated run, and when: strikes, each at a named step of a rank, perhaps after another one."""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["KINDS", "LOSSES", "Strike", "draw_strikes"]

STEPS = (
    "start", "build", "form", "receive", "give", "restore", "wrap", "load", "take", "fetch", "step", "arrive",
    "released", "evaluate", "call", "called", "plan", "freeze", "write", "written", "stand", "finish", "leave",
)  # fmt: skip
IN_TRAINING = ("fetch", "step", "arrive", "released", "take")
TALKING = ("take", "step", "evaluate", "form", "restore", "wrap", "receive", "give")  # where a peer may be missed
USERS = ("build", "fetch", "step", "evaluate")  # where the user's program runs
LOSSES = {
    "kill",
    "kill another",
    "kill all",
    "kill node",
    "silence",
    "stick",
    "part",
    "zombie",
    "talk",
    "astray",
    "astray always",
}
KINDS = {
    "kill": 10.0,
    "kill another": 4.0,
    "kill all": 1.0,
    "kill node": 1.0,
    "kill reserve": 2.0,
    "silence": 1.0,
    "zombie": 2.0,
    "stick": 1.0,
    "part": 2.0,
    "talk": 2.0,
    "user": 1.0,
    "call": 0.3,
    "refuse": 1.5,
    "stumble": 1.0,
    "interrupt": 1.2,
    "stop now": 0.4,
    "fence": 0.4,
    "drain": 1.5,
}
"""Kind of a strike → how often it is drawn."""


@dataclass(slots=True, kw_only=True)
class Strike:
    """Something that goes wrong.

    Args:
        kind: one of `KINDS`.
        step: at which step of a rank; "any": at each.
        count: at the so many-th time that any rank comes by, counted from 1.
        after: number of the strike that must have struck before the count begins; None: from the start.
        struck: what happened, in words.
    """

    kind: str
    step: str
    count: int
    after: int | None = None
    struck: str | None = None

    def __str__(self) -> str:
        when = "" if self.after is None else f" after strike {self.after}"
        return f"{self.kind} at {self.step} #{self.count}{when}: {self.struck or 'did not happen'}"


def draw_strikes(rng: random.Random) -> list[Strike]:
    """The strikes of one schedule."""
    strikes: list[Strike] = []
    for number in range(rng.choice((1, 1, 1, 2, 2, 2, 3, 3, 4, 5))):
        kind = rng.choices(list(KINDS), weights=list(KINDS.values()))[0]
        after = number - 1 if number and rng.random() < 0.65 else None
        step, count = _where(rng, kind, after is not None)
        strikes.append(Strike(kind=kind, step=step, count=count, after=after))
    return strikes


def _where(rng: random.Random, kind: str, follows: bool) -> tuple[str, int]:
    """A step and its count: what follows another strike comes soon, in the middle of the recovery."""
    if kind == "talk":
        return rng.choice(TALKING[:4] if not follows else TALKING), rng.randint(1, 25)
    if kind == "user":
        return rng.choice(USERS), rng.randint(1, 30)
    if kind == "call":
        return "call", rng.randint(1, 8)
    if follows:
        return (rng.choice(STEPS), rng.randint(1, 4)) if rng.random() < 0.6 else ("any", rng.randint(1, 60))
    style = rng.random()
    if style < 0.35:
        return "any", rng.randint(1, 600)
    if style < 0.65:
        return rng.choice(IN_TRAINING), rng.randint(1, 40)
    return rng.choice(STEPS), rng.randint(1, 10)
