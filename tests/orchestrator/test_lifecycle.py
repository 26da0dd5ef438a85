"""The phases of a run: the legal way through them, and the story that an illegal step tells."""

import pytest

from orchestrator.lifecycle import ENDS, Lifecycle, Phase

WAY = (
    Phase.PLACING, Phase.BUILDING, Phase.JOINING, Phase.RUNNING, Phase.GATE, Phase.RUNNING,
    Phase.FINISHING, Phase.COMPLETED,
)  # fmt: skip


def after(*phases: Phase) -> Lifecycle:
    life = Lifecycle()
    for phase in phases:
        life.enter(phase)
    return life


def test_a_run_goes_from_placing_to_completed() -> None:
    assert after(*WAY).story == [Phase.NEW, *WAY]


@pytest.mark.parametrize("steps", range(len(WAY)))
@pytest.mark.parametrize("end", [Phase.STOPPED, Phase.FAILED])
def test_a_run_may_stop_or_fail_in_every_phase_that_is_no_end(steps: int, end: Phase) -> None:
    assert after(*WAY[:steps], end).phase is end


@pytest.mark.parametrize("end", sorted(ENDS, key=str))
@pytest.mark.parametrize("phase", Phase)
def test_nothing_follows_an_end(end: Phase, phase: Phase) -> None:
    life = after(*WAY) if end is Phase.COMPLETED else after(end)
    with pytest.raises(AssertionError):
        life.enter(phase)
    assert life.phase is end


def test_an_illegal_step_tells_how_the_run_got_there() -> None:
    life = after(*WAY[:5])
    with pytest.raises(AssertionError) as caught:
        life.enter(Phase.COMPLETED)
    assert str(caught.value) == (
        "a run can't go from gate to completed; it went new → placing → building → joining → running → gate"
    )


def test_a_run_of_many_gates_keeps_a_short_story() -> None:
    life = after(*WAY[:4], *(Phase.GATE, Phase.RUNNING) * 500)
    assert len(life.story) < 100
    assert life.phase is Phase.RUNNING
