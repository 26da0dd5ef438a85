"""The phases of a run and the legal steps between them; an illegal one raises with the story of how it got there.

Pure: the run, its ranks and its gates say where they step, nothing here acts.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["Lifecycle", "Phase"]


class Phase(Enum):
    """Where a run stands, as the driver sees it."""

    NEW = "new"
    PLACING = "placing"
    BUILDING = "building"
    JOINING = "joining"
    RECOVERING = "recovering"
    RUNNING = "running"
    GATE = "gate"
    FINISHING = "finishing"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"


_LEGAL: dict[Phase, tuple[Phase, ...]] = {
    Phase.NEW: (Phase.PLACING,),
    Phase.PLACING: (Phase.BUILDING,),
    Phase.BUILDING: (Phase.JOINING,),
    Phase.JOINING: (Phase.RUNNING, Phase.GATE, Phase.RECOVERING),
    Phase.RECOVERING: (Phase.JOINING, Phase.RECOVERING),
    Phase.RUNNING: (Phase.GATE, Phase.FINISHING, Phase.RECOVERING),
    Phase.GATE: (Phase.RUNNING, Phase.RECOVERING),
    Phase.FINISHING: (Phase.COMPLETED, Phase.RECOVERING),
    Phase.COMPLETED: (),
    Phase.STOPPED: (),
    Phase.FAILED: (),
}
ENDS = frozenset({Phase.COMPLETED, Phase.STOPPED, Phase.FAILED})


class Lifecycle:
    """The phase of one run.

    Example:
        >>> life = Lifecycle()
        >>> life.enter(Phase.PLACING)
        >>> life.phase
        <Phase.PLACING: 'placing'>
    """

    def __init__(self) -> None:
        self.story: list[Phase] = [Phase.NEW]

    @property
    def phase(self) -> Phase:
        """Where the run stands now."""
        return self.story[-1]

    def enter(self, phase: Phase) -> None:
        """Step into a phase; STOPPED and FAILED may be entered from every phase that is no end.

        Raises:
            AssertionError: the step is not legal; tells the last phases.
        """
        now = self.phase
        legal = phase in _LEGAL[now] or (phase in {Phase.STOPPED, Phase.FAILED} and now not in ENDS)
        story = " → ".join(known.value for known in self.story[-6:])
        assert legal, f"a run can't go from {now.value} to {phase.value}; it went {story}"
        self.story.append(phase)
        del self.story[:-32]
