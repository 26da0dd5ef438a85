"""Who hangs and who is slow, by what ranks tell of themselves; in simulated worlds of ranks that move in lockstep."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.timeouts import Timeouts
from orchestrator.watch import Beat, Hang, Straggler, Watch

PULSE, LOOK = 0.5, 1.0
HANG = 20.0
FIRST = Timeouts.of(HANG).first


def beat(rank: int, at: float, **known: Any) -> Beat:
    defaults = {"phase": "training", "iteration": 9, "progress": 3, "idle": 0.0}
    return Beat(rank=rank, at=at, **(defaults | known))


class Story:
    """Ranks that are past their first steps, and one clock."""

    def __init__(self, ranks: int = 3, hang: float = HANG) -> None:
        self.watch = Watch(Timeouts.of(hang))
        self.ranks = range(ranks)
        self.now = 0.0
        self.watch.begin(self.ranks, now=0.0, phase="training")
        for iteration in (1, 3, 9):
            self.pulse(self.ranks, iteration=iteration)

    def pulse(self, ranks: Iterable[int], **known: Any) -> None:
        for rank in ranks:
            self.watch.hear(beat(rank, self.now, **known))

    def wait(
        self, seconds: float, telling: dict[int, dict[str, Any]] | None = None, *, since: float | None = None
    ) -> list[Hang | Straggler]:
        """Let time pass; ranks tell what is given, and how long they have stood still since then.

        `since` may also be told for one rank.
        """
        found: list[Hang | Straggler] = []
        until = self.now + seconds
        since = self.now if since is None else since
        while self.now < until:
            self.now += PULSE
            for rank, known in (telling or {}).items():
                known = {"since": since} | known
                self.pulse([rank], **({"idle": self.now - known.pop("since")} | known))
            found += self.watch.look(self.now)
        return found


def all_of(story: Story, **known: Any) -> dict[int, dict[str, Any]]:
    return {rank: known for rank in story.ranks}


def hung(found: list[Hang | Straggler]) -> list[tuple[int, str, bool]]:
    assert all(isinstance(one, Hang) for one in found)
    return [(one.rank, one.how, one.sure) for one in found if isinstance(one, Hang)]


# -------------------------------------------------------------------- what ranks do
SETS_UP = ("starting", "building the program", "joining the process group", "loading the checkpoint", "going back to ")
WAITS = ("waiting at ", "waiting for the next generation", "finished", "failed", "leaving")
WORKS = (
    "training",
    "arriving at ",
    "evaluating with ",
    "calling ",
    "planning a checkpoint",
    "copying the state for a checkpoint",
)


def test_every_phase_of_a_rank_is_known_as_setting_up_waiting_or_work() -> None:
    session = (Path(__file__).parents[2] / "workers" / "session.py").read_text()
    phases = set(re.findall(r'(?:_note\(f?|self\.phase = )"([^"{]+)', session))
    assert {"training", "waiting at ", "finished"} <= phases <= {*SETS_UP, *WAITS, *WORKS}
    kinds = {phase: (one.sets_up, one.waits) for phase in phases if (one := beat(0, 0.0, phase=phase))}
    assert kinds == {phase: (phase in SETS_UP, phase in WAITS) for phase in phases}


# -------------------------------------------------------------------- who hangs
def test_a_rank_whose_pulses_stop_is_named_once() -> None:
    story = Story()
    found = story.wait(HANG + 1, {0: {"idle": 0.0}, 2: {"idle": 0.0}})
    assert hung(found) == [(1, "silent", True)]
    assert str(found[0]).startswith("no sign of life for 20 s (training, iteration 9)")
    assert story.wait(HANG, {0: {"idle": 0.0}, 2: {"idle": 0.0}}) == []


def test_a_rank_that_is_behind_is_named_although_all_stand_still() -> None:
    story = Story()
    found = story.wait(HANG + 1, {0: {}, 1: {"progress": 2}, 2: {}})
    assert hung(found) == [(1, "stuck", True)]
    assert str(found[0]) == "no progress for 20 s (training, iteration 9)"
    assert story.wait(HANG, {0: {}, 1: {"progress": 2}, 2: {}}) == []


def test_a_rank_an_iteration_behind_is_named_however_much_it_did_in_it() -> None:
    story = Story()
    telling = {0: {"iteration": 10, "progress": 1}, 1: {"iteration": 9, "progress": 8}, 2: {"iteration": 10}}
    assert hung(story.wait(HANG + 1, telling)) == [(1, "stuck", True)]


def test_ranks_at_the_same_place_are_all_suspects() -> None:
    story = Story()
    assert hung(story.wait(HANG + 1, all_of(story))) == [(rank, "stuck", False) for rank in story.ranks]


def test_suspects_are_told_together_when_the_one_that_came_last_has_stood_too_long() -> None:
    story = Story(ranks=2)
    assert story.wait(3.0, {0: {"since": 0.0}, 1: {"progress": 2, "idle": 0.0}}) == []
    stand = {0: {"since": 0.0}, 1: {"since": story.now}}
    assert story.wait(HANG - 1.0, stand) == []  # one waits for the other, rightly
    assert hung(story.wait(3.0, stand)) == [(0, "stuck", False), (1, "stuck", False)]


def test_of_ranks_at_the_same_place_the_one_that_has_gone_quiet_is_named() -> None:
    story = Story()
    assert story.wait(10, all_of(story)) == []
    assert hung(story.wait(HANG - 9, {0: {}, 2: {}}, since=0.0)) == [(1, "stuck", True)]


def test_a_silent_rank_is_blamed_and_not_those_that_wait_for_it() -> None:
    story = Story()
    assert hung(story.wait(HANG + 2, {0: {"iteration": 10}, 2: {"iteration": 10}})) == [(1, "silent", True)]
    assert story.wait(HANG, {0: {"iteration": 10}, 2: {"iteration": 10}}) == []


def test_a_rank_that_moves_again_may_be_named_again() -> None:
    story = Story()
    stuck = {0: {}, 1: {"progress": 2}, 2: {}}
    assert len(story.wait(HANG + 1, stuck)) == 1
    assert story.wait(1, all_of(story, iteration=10, idle=0.0)) == []
    assert len(story.wait(HANG + 1, {0: {"iteration": 11}, 1: {"iteration": 10}, 2: {"iteration": 11}})) == 1


def test_the_others_wait_rightly_for_one_that_still_moves() -> None:
    story = Story()
    slow = {"iteration": 9, "idle": 0.1}  # a local evaluation, say: many moves within one iteration
    assert story.wait(10 * HANG, {0: slow, 1: {"iteration": 10}, 2: {"iteration": 10}}) == []


@pytest.mark.parametrize("phase", ["waiting at trainer EPOCH_COMPLETED #1", "finished", "failed", "stopped"])
def test_a_rank_that_waits_to_be_told_does_not_hang(phase: str) -> None:
    story = Story()
    assert story.wait(10 * HANG, all_of(story, phase=phase)) == []


@pytest.mark.parametrize("phase", ["building the program", "joining the process group", "loading the checkpoint"])
def test_what_may_take_long_does_not_hang_while_it_gives_signs_of_life(phase: str) -> None:
    story = Story()
    assert story.wait(2 * FIRST, all_of(story, phase=phase)) == []
    others = {0: {"phase": phase}, 2: {"phase": phase}}
    assert story.wait(FIRST - 1, others) == []
    assert hung(story.wait(2, others)) == [(1, "silent", True)]


@pytest.mark.parametrize("phase", ["evaluating with evaluator", "calling export", "copying the state for a checkpoint"])
def test_a_rank_that_stands_in_an_order_holds_up_those_that_have_answered(phase: str) -> None:
    story = Story()
    gate = {"phase": "waiting at trainer EPOCH_COMPLETED #1"}
    assert hung(story.wait(HANG + 1, {0: gate, 1: {"phase": phase}, 2: gate})) == [(1, "stuck", True)]


def test_an_evaluation_of_any_length_moves() -> None:
    story = Story()
    for batch in range(200):
        assert story.wait(1, all_of(story, phase="evaluating with evaluator", progress=3 + batch)) == []


def test_a_rank_that_does_not_leave_a_gate_when_it_is_told_to_is_named() -> None:
    story = Story()
    gate = {"phase": "waiting at trainer EPOCH_COMPLETED #1"}
    began = story.now
    assert story.wait(10 * HANG, all_of(story, **gate)) == []
    story.watch.ordered(story.ranks, now=story.now)
    telling = {0: {"iteration": 10}, 1: gate | {"since": began}, 2: {"iteration": 10}}
    assert story.wait(HANG, telling) == []
    assert hung(story.wait(1, telling)) == [(1, "stuck", True)]


def test_a_rank_that_did_what_it_was_told_waits_rightly_again() -> None:
    story = Story()
    gate = {"phase": "waiting at trainer EPOCH_COMPLETED #1"}
    story.wait(1, all_of(story, **gate))
    story.watch.ordered(story.ranks, now=story.now)  # an evaluation, say, that took less than a pulse
    assert story.wait(10 * HANG, all_of(story, **gate)) == []


def test_a_rank_that_falls_silent_a_second_time_is_named_a_second_time() -> None:
    story = Story(ranks=1)
    gate = {"phase": "waiting at trainer EPOCH_COMPLETED #1"}
    for _ in range(2):
        story.pulse([0], **gate, idle=story.now)
        assert hung(story.wait(2 * HANG)) == [(0, "silent", True)]


def test_before_the_first_step_is_done_there_is_more_patience() -> None:
    watch = Watch(Timeouts.of(HANG))
    watch.begin([0], now=0.0)
    found, now = [], 0.0
    while not found:
        now += PULSE
        watch.hear(beat(0, now, iteration=1, idle=now))
        found = watch.look(now)
    assert FIRST < now <= FIRST + LOOK


def test_a_newcomer_that_takes_up_iteration_96_has_not_done_96_steps() -> None:
    watch = Watch(Timeouts.of(HANG))
    watch.begin([0], now=0.0)
    watch.hear(beat(0, 0.0, phase="going back to iteration 96", iteration=0))
    now = 0.0
    while now < FIRST - 1:
        now += PULSE
        watch.hear(beat(0, now, iteration=97, idle=now))
        assert watch.look(now) == []


def test_one_rank_that_warms_up_asks_for_patience_with_all() -> None:
    watch = Watch(Timeouts.of(HANG))
    watch.begin([0, 1], now=0.0)
    now = 0.0
    while now < FIRST - 1:
        now += PULSE
        watch.hear(beat(0, now, iteration=9 if now > 5 else 1, idle=max(now - 5, 0.0)))
        watch.hear(beat(1, now, iteration=9, progress=1, idle=now))
        assert watch.look(now) == []


def test_a_rank_that_was_never_heard_of_is_named() -> None:
    watch = Watch(Timeouts.of(HANG))
    watch.begin([0, 1], now=0.0, phase="training")
    found, now = [], 0.0
    while not found:
        now += PULSE
        watch.hear(beat(0, now))
        found = watch.look(now)
    assert hung(found) == [(1, "silent", True)]
    assert now <= HANG + LOOK


def test_the_time_in_which_the_driver_did_not_look_is_not_the_ranks() -> None:
    story = Story()
    story.now += 100 * HANG  # a handler ran
    assert story.watch.look(story.now) == []
    back = story.now
    assert story.wait(HANG / 2, all_of(story)) == []
    assert len(story.wait(HANG, all_of(story), since=back)) == 3


def test_a_new_generation_begins_afresh() -> None:
    story = Story()
    assert len(story.wait(HANG + 1)) == 3
    story.watch.begin([0], now=story.now, phase="training")
    assert story.wait(HANG - 1, {0: {}}) == []
    story.watch.begin([], now=story.now)
    story.pulse([1])
    assert story.wait(2 * HANG) == []


# -------------------------------------------------------------------- in lockstep
@dataclass
class Runner:
    """One rank of a simulated world."""

    work: float  # seconds of an iteration's own work
    left: float = 0.0
    iteration: int = 1
    progress: int = 1
    moved: float = 0.0
    phase: str = "training"
    frozen: bool = False  # no pulses any more
    stopped: bool = False

    def to(self, now: float, progress: int, phase: str = "training") -> None:
        self.progress, self.phase, self.moved = progress, phase, now

    @property
    def arrived(self) -> bool:
        """In the collective of this iteration, or at the gate after it."""
        return self.progress >= 3


class Lockstep:
    """Ranks that work for a while each iteration, then wait for each other; every few iterations at a gate."""

    def __init__(self, works: list[float], gate_every: int, at_gate: float) -> None:
        self.runners = [Runner(work=work, left=work) for work in works]
        self.gate_every, self.at_gate = gate_every, at_gate
        self.until: float | None = None
        self.left = 0  # the last iteration that all have left
        self.now = 0.0
        self.watch = Watch(Timeouts.of(HANG))
        self.watch.begin(range(len(works)), now=0.0, phase="training")
        self.found: list[Hang | Straggler] = []

    def tick(self) -> None:
        self.now += PULSE
        for runner in self.runners:
            if not runner.stopped and not runner.arrived:
                runner.left -= PULSE
                if runner.left <= 0:
                    self._arrive(runner)
                elif runner.progress == 1 and runner.left <= runner.work / 2:
                    runner.to(self.now, 2)
        if self.together:
            self._all_there()
        for rank, runner in enumerate(self.runners):
            if not runner.frozen:
                idle = self.now - runner.moved
                known = {"phase": runner.phase, "iteration": runner.iteration, "progress": runner.progress}
                self.watch.hear(beat(rank, self.now, idle=idle, **known))
        if self.now % LOOK == 0:
            self.found += self.watch.look(self.now)

    @property
    def together(self) -> bool:
        iteration = self.runners[0].iteration
        return iteration > self.left and all(
            runner.arrived and runner.iteration == iteration for runner in self.runners
        )

    def _arrive(self, runner: Runner) -> None:
        gate = runner.iteration % self.gate_every == 0
        runner.to(self.now, 3, f"waiting at trainer EPOCH_COMPLETED #{runner.iteration}" if gate else "training")

    def _all_there(self) -> None:
        """All go on, after the handler if it was a gate; one that is stopped stays where it is."""
        if self.until is None:
            gate = self.runners[0].phase != "training"
            self.until = self.now + (self.at_gate if gate else 0.0)
        if self.now >= self.until:
            self.until, self.left = None, self.runners[0].iteration
            self.watch.ordered(range(len(self.runners)), now=self.now)
            for runner in self.runners:
                if not runner.stopped:
                    runner.iteration += 1
                    runner.left = runner.work
                    runner.to(self.now, 1)


worlds = st.builds(
    Lockstep,
    works=st.lists(st.floats(0.1, HANG / 4), min_size=1, max_size=4),
    gate_every=st.integers(1, 4),
    at_gate=st.floats(0.0, 2 * HANG),
)


@given(world=worlds)
def test_no_rank_is_named_while_all_move_in_time(world: Lockstep) -> None:
    while world.now < 5 * HANG:
        world.tick()
    assert world.found == []


@given(world=worlds, data=st.data())
def test_whoever_stops_wherever_is_named_in_time(world: Lockstep, data: st.DataObject) -> None:
    warm = data.draw(st.integers(4, 6))
    while min(runner.iteration for runner in world.runners) < warm:
        world.tick()
    for _ in range(data.draw(st.integers(0, 60))):
        world.tick()
    rank = data.draw(st.integers(0, len(world.runners) - 1))
    victim = world.runners[rank]
    victim.stopped, victim.frozen = True, data.draw(st.booleans())
    while victim.arrived and not victim.frozen and world.together:
        world.tick()  # it stands where it would wait anyway: that shows when the others have gone on without it
    stopped = world.now
    while not world.found and world.now < 10 * HANG + stopped:
        world.tick()
    assert rank in [hang.rank for hang in world.found if isinstance(hang, Hang)]
    assert all(hang.rank == rank for hang in world.found if isinstance(hang, Hang) and hang.sure)
    slowest = max(runner.work for runner in world.runners)
    assert world.now - stopped <= HANG + LOOK + PULSE + slowest + (0.0 if victim.frozen else world.at_gate)


# -------------------------------------------------------------------- who is slow
def trained(steps: dict[int, float], least: float = 60.0, **known: Any) -> tuple[Watch, float]:
    """Ranks that train on their own, each so many seconds a step, for a minute at least."""
    watch = Watch(Timeouts.of(1000.0))
    watch.begin(steps, now=0.0)
    end = max(least, 10 * max(steps.values()))
    for tick in range(int(end / PULSE) + 1):
        now = tick * PULSE
        for rank, seconds in steps.items():
            watch.hear(beat(rank, now, iteration=int(now / seconds), **known))
    return watch, end


def slow(found: list[Hang | Straggler]) -> list[tuple[int, float, float]]:
    stragglers = [one for one in found if isinstance(one, Straggler)]
    assert len(stragglers) == len(found)
    return [(one.rank, round(one.seconds, 2), round(one.others, 2)) for one in stragglers]


@pytest.mark.parametrize("scale", [0.05, 0.5, 8.0])
def test_a_rank_whose_steps_take_three_times_as_long_is_told_once(scale: float) -> None:
    watch, now = trained({0: scale, 1: 3 * scale, 2: scale, 3: scale})
    [straggler] = watch.look(now)
    assert isinstance(straggler, Straggler)
    assert straggler.rank == 1
    assert straggler.ratio == pytest.approx(3.0, rel=0.2)
    assert watch.look(now) == []


def test_ranks_that_are_equally_fast_are_not_told() -> None:
    watch, now = trained(dict.fromkeys(range(4), 0.5))
    assert watch.look(now) == []
    watch, now = trained({0: 0.5, 1: 0.9, 2: 0.5})
    assert watch.look(now) == []


def test_half_a_minute_is_not_enough_to_tell() -> None:
    watch, now = trained({0: 0.1, 1: 0.3}, least=24.0)
    assert watch.look(now) == []


def test_in_lockstep_the_time_in_which_a_rank_was_busy_tells_who_is_slow() -> None:
    watch = Watch(Timeouts.of(HANG))
    watch.begin(range(3), now=0.0)
    for second in range(30):
        for rank, share in enumerate((0.3, 0.9, 0.3)):
            watch.hear(beat(rank, float(second), iteration=second, busy=share * second))
    assert slow(watch.look(29.0)) == [(1, 0.9, 0.3)]


def test_a_straggler_that_has_caught_up_may_be_told_again() -> None:
    watch = Watch(Timeouts.of(HANG))
    watch.begin(range(2), now=0.0)
    told, busy, shares = 0, [0.0, 0.0], [*[0.9] * 200, *[0.55] * 200, *[0.9] * 200, *[0.3] * 200, *[0.9] * 200]
    for second, share in enumerate(shares):
        busy = [busy[0] + 0.3, busy[1] + share]
        for rank in range(2):
            watch.hear(beat(rank, float(second), iteration=second, busy=busy[rank]))
        told += len(watch.look(float(second)))
    assert told == 2  # a little less slow (0.55) is still the same episode


def test_only_training_is_measured() -> None:
    watch, now = trained({0: 0.5, 1: 3.0}, phase="evaluating with evaluator")
    assert watch.look(now) == []
