"""How often a run is recovered: a budget for each cause within a window of time, and whether recovering gets anywhere.

Pure: the time comes as an argument. Both are asked by `recovery.judge` at each failure, and keep what they were told.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from orchestrator.causes import Cause
from orchestrator.spec import RestartsSpec
from workers.parcels import GateKey

__all__ = ["Budgets", "Charge", "Progress", "Stuck"]

AT_ONCE = 3  # recoveries of one cause in a window that begin without a pause
LONGEST_PAUSE = 30.0  # seconds
FAILURES = 3  # of one iteration, or of one gate, after which the run ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One recovery, charged to its cause.

    Args:
        cause: why it is needed.
        number: of the recoveries from this cause in the window, this one included.
        allowed: how many there may be; None: any number.
        pause: seconds to wait before it begins.
    """

    cause: Cause
    number: int
    allowed: int | None
    pause: float

    @property
    def spent(self) -> bool:
        """Whether it is one too many."""
        return self.allowed is not None and self.number > self.allowed


class Budgets:
    """Recoveries by cause; those from preemption are not limited.

    Args:
        spec: how many there may be in which window.

    Example:
        >>> budgets = Budgets(RestartsSpec(oom=1, window=60.0))
        >>> [budgets.charge("oom", now=now).spent for now in (0.0, 30.0, 89.0, 149.5)]
        [False, True, True, False]
    """

    def __init__(self, spec: RestartsSpec) -> None:
        self.window = spec.window
        self._allowed: dict[Cause, int | None] = {
            "preemption": None,
            "crash": spec.crash,
            "oom": spec.oom,
            "hang": spec.hang,
            "network": spec.network,
        }
        self._charged: dict[Cause, list[float]] = {cause: [] for cause in self._allowed}

    def charge(self, cause: Cause, now: float) -> Charge:
        """Charge one recovery.

        Args:
            cause: why it is needed.
            now: seconds on a clock that never goes back.

        Returns:
            Whether it is one too many, and how long to pause: not at all for the first few in the window, so that a
            single loss costs little; then longer each time.
        """
        recent = [at for at in self._charged[cause] if at > now - self.window]
        charged = self._charged[cause] = [*recent, now]
        number, allowed = len(charged), self._allowed[cause]
        limited = allowed is not None and number > AT_ONCE
        pause = min(2.0 ** min(number - AT_ONCE - 1, 10), LONGEST_PAUSE) if limited else 0.0
        return Charge(cause=cause, number=number, allowed=allowed, pause=pause)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stuck:
    """Recovering gets nowhere.

    Args:
        iteration: that failed each time; None if training just came no farther.
        gate: at which it failed each time; None: in the middle of the iteration.
        times: failures of this place; or recoveries that brought nothing.
    """

    iteration: int | None
    gate: GateKey | None
    times: int

    def __str__(self) -> str:
        return f"iteration {self.iteration}" + ("" if self.gate is None else f" at {self.gate}")


class Progress:
    """Whether training comes farther from one recovery to the next.

    Args:
        recoveries: so many in a row may bring nothing.

    Example:
        >>> progress = Progress()
        >>> [str(progress.failed(iteration)) for iteration in (7, 9, 9, 9)]
        ['None', 'None', 'None', 'iteration 9']
    """

    def __init__(self, *, recoveries: int = 3) -> None:
        self._recoveries = recoveries
        self._reached = (-1, False)
        self._since: list[tuple[int, GateKey | None] | None] = []  # where it failed since it came farther than before

    def failed(self, iteration: int | None, gate: GateKey | None = None) -> Stuck | None:
        """Take a failure in.

        Args:
            iteration: of the trainer, in progress, or just done at the gate; None: none, the ranks were joining.
            gate: at which the ranks stood.

        Returns:
            Why the run should end; None: recover.
        """
        if iteration is not None and (iteration, gate is not None) > self._reached:
            self._reached = (iteration, gate is not None)
            self._since.clear()
        place = None if iteration is None else (iteration, gate)
        self._since.append(place)
        if place is not None and Counter(self._since)[place] >= FAILURES:
            return Stuck(iteration=iteration, gate=gate, times=FAILURES)
        if len(self._since) > self._recoveries:
            return Stuck(iteration=None, gate=None, times=self._recoveries)
        return None
