"""How long is waited for what when something may be broken: one table, derived from the one number in the job file.

The driver's watch, the forming of process groups and the end of a generation take their bounds from here, so that they
can't contradict each other: who knows more is asked first. What does not depend on the job has its number where it is
used, such as the lease of a rank (`group.py`). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Timeouts"]

AWAY = 120.0  # seconds that a storage may be away at least: servers of files take a minute or more to take over


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Bounds in seconds.

    Args:
        hang: a rank that should make progress and makes none for so long is hung.
        silence: a rank that sends no pulse for so long is hung, whatever it does; several pulses at least.
        first: instead of `hang` until every rank has done its first step: kernels are compiled, loaders started.
            Instead of `silence` while a rank builds or loads: that may keep its interpreter busy.
        collective: a collective that does not end by itself is an error. The last resort, for when nobody watches:
            longer than `first`, or ranks that wait for a slow one would fail before it is found.
        forming: a process group forms, or the attempt has failed.
        unwind: after `Abort`, a rank that still moves has let go of its generation; who has not is ended.
        saving: a save in flight with which a rank does not come on for so long is given up. Longer than `silence`,
            since a rank that stands still as a whole does not write either.

    Example:
        >>> Timeouts.of(300.0).first
        1500.0
    """

    hang: float
    silence: float
    first: float
    collective: float
    forming: float
    unwind: float
    saving: float

    @classmethod
    def of(cls, hang_timeout: float) -> Timeouts:
        """Derive all bounds.

        Args:
            hang_timeout: `recovery.hang_timeout` of the job, in seconds.
        """
        return cls(
            hang=hang_timeout,
            silence=max(hang_timeout, 3.0),
            first=5.0 * hang_timeout,
            collective=max(6.0 * hang_timeout, 10.0),
            forming=_between(5.0, hang_timeout / 10, 60.0),
            unwind=_between(2.0, hang_timeout / 10, 60.0),
            saving=max(2.0 * hang_timeout, AWAY),
        )


def _between(least: float, value: float, most: float) -> float:
    return min(max(least, value), most)
