"""How often to save: the interval at which saving and what is lost between saves cost least together. Pure.

Young and Daly; the rate of failures is that of Meta's research clusters, 6.5 per thousand node-days ("Revisiting
Reliability in Large-Scale Machine Learning Research Clusters", 2024). Called by `rankfire doctor`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["FAILURES_PER_NODE_DAY", "Advice", "advise"]

FAILURES_PER_NODE_DAY = 6.5e-3
DAY = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What to expect.

    Args:
        interval: seconds between two saves.
        productive: share of the time that is training which is kept, from 0 to 1.
        between_failures: seconds between two failures of the job, on average.
    """

    interval: float
    productive: float
    between_failures: float


def advise(
    *, save: float, nodes: int, restart: float = 60.0, failures_per_node_day: float = FAILURES_PER_NODE_DAY
) -> Advice:
    """The best interval between saves.

    Args:
        save: seconds for which training waits for a save.
        nodes: of the job.
        restart: seconds from a failure to training again.
        failures_per_node_day: how often a node fails.

    Example:
        >>> advice = advise(save=10.0, nodes=128, failures_per_node_day=6.5e-3)
        >>> round(advice.interval), round(advice.productive, 3)
        (1441, 0.986)
    """
    rate = nodes * failures_per_node_day / DAY
    interval = max(math.sqrt(2 * save / rate), save)
    productive = max(0.0, 1 - rate * (restart + interval / 2)) / (1 + save / interval)
    return Advice(interval=interval, productive=productive, between_failures=1 / rate)
