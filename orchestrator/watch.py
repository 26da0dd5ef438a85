"""Who hangs, and who is slow: from the ranks' pulses, by their progress and not by whether their processes answer.

Pure: the time comes with each call. The driver's loop passes pulses on and looks about once a second; what follows from
a hang is decided in `recovery.py`. In lockstep all ranks stand still when one does, so the one that is behind is named.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from orchestrator.timeouts import Timeouts

__all__ = ["Beat", "Hang", "Straggler", "Watch"]

STRETCH = 5.0  # seconds of training that are measured as one: pulses are too coarse for single steps
STRETCHES = 20  # of a rank, the last so many are compared
ENOUGH = 5
SEVERAL_PULSES = 3.0  # seconds
SLOW = 2.0  # a rank whose steps take so many times as long as those of the others is told as a straggler
CALMED = 0.75  # of SLOW: below that the episode of a straggler is over

_WAITING = ("waiting", "finished", "failed", "stopped", "leaving")
_SETTING_UP = ("starting", "building", "joining", "loading", "going back")


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A pulse as the watch sees it.

    Args:
        rank: whose.
        phase: what its training thread does, in the words of `Pulse.phase`.
        iteration: of the trainer.
        progress: moves since that iteration began, of any engine: events fired, phases begun. With the iteration it
            tells which of two ranks is behind.
        idle: seconds since the last move, as the rank measured them.
        at: when it was received, in seconds on the driver's clock.
        busy: seconds in which the training thread has worked so far, without waiting for other ranks; None if the rank
            does not know. In lockstep only this tells a slow rank from those that wait for it.
    """

    rank: int
    phase: str
    iteration: int
    progress: int
    idle: float
    at: float
    busy: float | None = None

    @property
    def waits(self) -> bool:
        """Whether it rightly makes no progress until it is told to go on."""
        return self.phase.startswith(_WAITING)

    @property
    def at_gate(self) -> bool:
        """Whether it waits in the middle of training."""
        return self.phase.startswith("waiting at")

    @property
    def sets_up(self) -> bool:
        """Whether it does something that has no measure of progress, and may take long."""
        return self.phase.startswith(_SETTING_UP)

    @property
    def place(self) -> tuple[int, int]:
        """How far it has come; comparable among ranks of one generation."""
        return self.iteration, self.progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """A rank stands still.

    Args:
        rank: which one.
        how: "silent": no pulses come; "stuck": they come, and tell of no progress.
        seconds: for how long.
        phase: what it does, as last told.
        iteration: of the trainer.
        sure: False if several ranks stand at the same place, and any of them may be the one for which the others wait.
            Then all are told, each with `sure=False`; who lets go after `Abort` was only waiting.
    """

    rank: int
    how: Literal["silent", "stuck"]
    seconds: float
    phase: str
    iteration: int
    sure: bool = True

    def __str__(self) -> str:
        what = "no sign of life" if self.how == "silent" else "no progress"
        return f"{what} for {self.seconds:.0f} s ({self.phase}, iteration {self.iteration})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Straggler:
    """A rank is much slower than the others.

    Args:
        rank: which one.
        seconds: its median step takes.
        others: seconds that those of the others take.
        ratio: between the two.
    """

    rank: int
    seconds: float
    others: float
    ratio: float


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What is known of one rank.

    Args:
        beat: the last one; before the first, an empty one.
        heard: when it was heard last.
        moved: when it last made progress.
        ordered: when it was last told to do something.
        first: the iteration in which it was when it was first seen in training.
        told: how it has been named, until that is over.
        began: the beat with which a stretch of training began; None: it does not train.
        steps: seconds that a step took in each of the last stretches.
        slow: it has been told as a straggler, until it has caught up.
    """

    beat: Beat
    heard: float
    moved: float
    ordered: float
    first: int | None = None
    told: Literal["silent", "stuck"] | None = None
    began: Beat | None = None
    steps: deque[float] = field(default_factory=lambda: deque(maxlen=STRETCHES))
    slow: bool = False

    @property
    def should_move(self) -> bool:
        """Whether it has something to do, of which it makes progress."""
        return not self.beat.sets_up and (not self.beat.waits or self.ordered > self.moved)

    @property
    def stands(self) -> float:
        """Since when it has stood still, although it should move."""
        return max(self.moved, self.ordered) if self.beat.waits else self.moved

    @property
    def warming_up(self) -> bool:
        """Whether its first step may not be over: it is when a second one after it has begun."""
        return not self.beat.waits and (self.first is None or self.beat.iteration < self.first + 2)


class Watch:
    """Looks for ranks that hang or lag.

    Args:
        timeouts: how long a rank may stand still.

    Example:
        >>> watch = Watch(Timeouts.of(10.0))
        >>> watch.begin([0, 1], now=0.0, phase="training")
        >>> for second in range(12):
        ...     watch.hear(Beat(rank=0, phase="training", iteration=1, progress=3, idle=0.0, at=second))
        >>> [(hang.rank, str(hang)) for hang in watch.look(now=11.0)]
        [(1, 'no sign of life for 11 s (training, iteration 0)')]
    """

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._seen: dict[int, _Seen] = {}
        self._awake = 0.0
        self._setting_up = False

    def begin(self, ranks: Iterable[int], *, now: float, phase: str = "starting", setting_up: bool = False) -> None:
        """Watch these ranks from now on, and forget what was: a new generation. No ranks: watch nobody.

        Args:
            ranks: whom to watch.
            now: seconds on the driver's clock.
            phase: what they are about to do, until their first pulse tells.
            setting_up: whether all build or join, whatever they told last: none has to move, and each may be silent for
                as long as a first step may take.
        """
        self._awake = now
        self._setting_up = setting_up
        self._seen = {}
        for rank in ranks:
            beat = Beat(rank=rank, phase=phase, iteration=0, progress=0, idle=0.0, at=now)
            self._seen[rank] = _Seen(beat=beat, heard=now, moved=now, ordered=now)

    def hear(self, beat: Beat) -> None:
        """Take a pulse in; one of a rank that is not watched is ignored."""
        seen = self._seen.get(beat.rank)
        if seen is None:
            return
        self._forgive(beat.at)
        moved = max(seen.moved, beat.at - beat.idle)
        if (beat.phase, beat.place) != (seen.beat.phase, seen.beat.place) and moved < seen.heard:
            moved = beat.at  # it was elsewhere at the last pulse, so its idle time measures something else
        if seen.told == "silent" or moved > seen.moved:
            seen.told = None
        if seen.first is None and (beat.at_gate or not (beat.waits or beat.sets_up)):
            seen.first = beat.iteration
        _count_steps(seen, beat)
        seen.beat, seen.heard, seen.moved = beat, max(seen.heard, beat.at), moved

    def ordered(self, ranks: Iterable[int], now: float) -> None:
        """Ranks that wait were told to do something, be it to go on: from now on they should move."""
        for rank in ranks:
            if rank in self._seen:
                self._seen[rank].ordered = now

    def look(self, now: float) -> list[Hang | Straggler]:
        """Name who hangs, and who is slow; each once, until it has moved, or caught up.

        Args:
            now: seconds on the driver's clock.
        """
        self._forgive(now)
        hangs = [hang for hang in self._silent(now) or self._stuck(now) if self._seen[hang.rank].told != hang.how]
        for hang in hangs:
            self._seen[hang.rank].told = hang.how
        return [*hangs, *self._stragglers()]

    def _forgive(self, now: float) -> None:
        """What happened while nobody looked, since the driver was in a handler, is not counted against the ranks."""
        missed = now - self._awake - self._timeouts.hang / 4
        if missed > 0:
            for seen in self._seen.values():
                seen.heard, seen.moved = min(seen.heard + missed, now), min(seen.moved + missed, now)
                seen.ordered = min(seen.ordered + missed, now)
        self._awake = max(self._awake, now)

    # ---------------------------------------------------------------- hangs
    def _silent(self, now: float) -> list[Hang]:
        limits = self._timeouts
        return [
            _hang(seen, "silent", now - seen.heard)
            for seen in self._seen.values()
            if now - seen.heard > (limits.first if self._setting_up or seen.beat.sets_up else limits.silence)
        ]

    def _stuck(self, now: float) -> list[Hang]:
        """Of the ranks that should move, those that are farthest behind, if all of them have stood for too long.

        If they have not, the others wait for them, rightly; so does one of them for another that came there just now.
        """
        at_work = [seen for seen in self._seen.values() if seen.should_move]
        if not at_work or self._setting_up or any(seen.beat.sets_up for seen in self._seen.values()):
            return []
        limit = self._timeouts.first if any(seen.warming_up for seen in at_work) else self._timeouts.hang
        behind = min(seen.beat.place for seen in at_work)
        last = [seen for seen in at_work if seen.beat.place == behind]
        last = [seen for seen in last if now - seen.heard > SEVERAL_PULSES] or last  # who is quiet does not wait
        sure = len(last) == 1
        if any(now - seen.stands <= limit for seen in last):
            return []
        return [_hang(seen, "stuck", now - seen.stands, sure=sure) for seen in last]

    # ---------------------------------------------------------------- stragglers
    def _stragglers(self) -> list[Straggler]:
        medians = {rank: median(seen.steps) for rank, seen in self._seen.items() if len(seen.steps) >= ENOUGH}
        found = []
        for rank, seconds in medians.items():
            others = _of_others(medians, rank)
            ratio = seconds / others if others else 0.0
            seen = self._seen[rank]
            if ratio >= SLOW and not seen.slow:
                found.append(Straggler(rank=rank, seconds=seconds, others=others, ratio=ratio))
            seen.slow = ratio >= SLOW * (CALMED if seen.slow else 1.0)
        return found


def _hang(seen: _Seen, how: Literal["silent", "stuck"], seconds: float, *, sure: bool = True) -> Hang:
    beat = seen.beat
    return Hang(rank=beat.rank, how=how, seconds=seconds, phase=beat.phase, iteration=beat.iteration, sure=sure)


def _count_steps(seen: _Seen, beat: Beat) -> None:
    """Measure the steps of a stretch of nothing but training, from one pulse with a new iteration to another."""
    began = seen.began
    if beat.phase != "training" or beat.iteration < seen.beat.iteration:
        seen.began = None
    elif beat.iteration > seen.beat.iteration and began is None:
        seen.began = beat
    elif beat.iteration > seen.beat.iteration and began is not None and beat.at - began.at >= STRETCH:
        whole = beat.at - began.at if beat.busy is None or began.busy is None else beat.busy - began.busy
        seen.steps.append(max(whole, 0.0) / (beat.iteration - began.iteration))
        seen.began = beat


def _of_others(medians: Mapping[int, float], rank: int) -> float:
    others = [seconds for other, seconds in medians.items() if other != rank]
    return median(others) if others else 0.0
