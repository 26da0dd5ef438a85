"""What happened in a schedule, in lines that can be read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.schedule import Outcome

__all__ = ["report", "trace"]

LAST = 60  # lines of a trace in a report
WIDTH = 200
_SHORTER = (
    (re.compile(r"GateKey\(engine='(\w+)', event='(\w+)', count=(\d+), visit=(\d+)\)"), r"<\1 \2 #\3 of \4>"),
    (re.compile(r"SnapshotLabel\(iteration=(\d+), gate=(<[^>]*>|None), order=(\d+)\)"), r"[\1 \2 \3]"),
    (re.compile(r"Membership\((generation=\d+, rank=\d+, world_size=\d+)[^)]*\)"), r"(\1)"),
    (re.compile(r"(own|value|pickled)=b(['\"]).*?\2(?=[,)])"), r"\1=…"),
    (re.compile(r", (epoch|plan|place|roots|packs)=.*?(, after=\d+)?\)$"), r"\2 …)"),
)


def report(wrong: Sequence[Outcome]) -> str:
    """The failures, the one with the shortest trace in detail."""
    shortest = min(wrong, key=lambda outcome: len(outcome.world.trace))
    lines = [f"seed {outcome.seed}: {outcome.wrong}" for outcome in wrong]
    return "\n".join([*lines, "", f"the shortest, RANKFIRE_SEED={shortest.seed}:", trace(shortest, last=LAST)])


def trace(outcome: Outcome, last: int | None = None) -> str:
    """What happened.

    Args:
        outcome: of which schedule.
        last: only so many lines, the last ones; what the driver hears is left out then.
    """
    happened = [line for line in outcome.world.trace if last is None or line[1] != "driver hears"]
    shown = happened if last is None else happened[-last:]
    left_out = [f"… {len(happened) - len(shown)} lines before"] if len(shown) < len(happened) else []
    ended = f"ended: {outcome.ended} {outcome.text}"
    inside = ["the driver was in:", *(f"    {frame}" for frame in outcome.world.oracle.driver)]
    return "\n".join(
        [
            str(outcome.config),
            *(f"strike {number}: {strike}" for number, strike in enumerate(outcome.strikes)),
            *left_out,
            *(f"{at:9.3f} {who:14} {_short(what)}" for at, who, what in shown),
            ended,
            *([] if outcome.wrong is None else [f"WRONG: {outcome.wrong}", *inside]),
        ]
    )


def _short(what: object) -> str:
    text = str(what)
    for pattern, shorter in _SHORTER:
        text = pattern.sub(shorter, text)
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}…"
