"""One schedule: a run of the real driver over simulated ranks, drawn from a seed, and the judgement on it."""

from __future__ import annotations

import contextlib
import functools
import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import orchestrator.orchestrator
import orchestrator.regrouping
import orchestrator.rendezvous
import orchestrator.settings
import orchestrator.training
from orchestrator import Checkpoint, Evaluate, Orchestrator
from orchestrator.errors import RankfireError
from tests.simulation.clock import stand_in
from tests.simulation.config import CLASSES, Config, Rule
from tests.simulation.faults import Strike, draw_strikes
from tests.simulation.memory import Disk
from tests.simulation.model import bump, mix, shift
from tests.simulation.oracle import Oracle, ViolationError
from tests.simulation.verdicts import judge
from tests.simulation.world import World
from workers.events import Events
from workers.left_behind import LeftBehind
from workers.parcels import TRAINER

__all__ = ["Outcome", "play", "run_schedule"]

URL = "sim://runs"


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How a schedule went.

    Args:
        seed: of the schedule.
        config: what was run.
        strikes: what went wrong.
        ended: class of the error with which it ended, or "completed".
        wrong: what must not have been; None if all is well.
        world: what happened, for a trace.
        text: of the error.
    """

    seed: str
    config: Config
    strikes: list[Strike]
    ended: str
    wrong: str | None
    world: World
    text: str = ""


def run_schedule(seed: int) -> Outcome:
    """The schedule of a seed: a config, the undisturbed run of it once, and this one."""
    config = Config.draw(seed % CLASSES)
    rng = random.Random(f"strikes {seed}")
    return play(config, str(seed), draw_strikes(rng), undisturbed(config.number))


@functools.cache
def undisturbed(number: int) -> Oracle:
    """What a run does when nothing goes wrong."""
    outcome = play(Config.draw(number), f"undisturbed {number}", [], None)
    assert outcome.wrong is None, f"the undisturbed run of config {number}: {outcome.wrong}"
    return outcome.world.oracle


def play(config: Config, seed: str, strikes: list[Strike], like: Oracle | None) -> Outcome:
    """Run, and judge."""
    oracle, disk = Oracle(config, like), Disk(URL, moves=config.moves)
    world = World(config, seed, strikes, oracle, disk)
    disk.changed = lambda path: oracle.look_at(disk)
    ended, text, error = "completed", "", None
    with _stage(world):
        run = _orchestrator(world)
        try:
            result = run.run(**config.limits)
            ended = result.status
        except ViolationError:
            pass
        except (RankfireError, AssertionError, KeyError, OSError, ValueError) as raised:
            ended, text, error = type(raised).__name__, str(raised), raised
    if oracle.violation is None:
        with contextlib.suppress(ViolationError):
            judge(world, ended, text, error)
    return Outcome(
        seed=seed, config=config, strikes=strikes, ended=ended, wrong=oracle.violation, world=world, text=text
    )


@contextlib.contextmanager
def _stage(world: World) -> Iterator[None]:
    """The driver's surroundings are the simulated ones."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()):
        stand_in(patch, world.clock)
        patch.setattr("workers.versions.version", lambda package: "1.0")  # reading them takes as long as all else
        patch.setattr(orchestrator.settings, "storage_at", world.disk.at)
        patch.setattr(orchestrator.training, "RayGroup", lambda *given, **named: world)
        patch.setattr(orchestrator.training, "driver_log", lambda place: contextlib.nullcontext())
        patch.setattr(orchestrator.rendezvous, "Rendezvous", lambda host: contextlib.nullcontext(("sim", 1)))
        patch.setattr(orchestrator.regrouping, "left_behind", _left_behind)
        yield


def _left_behind(own: Any) -> LeftBehind:
    """What a simulated rank leaves: it has no metrics with a state."""
    return LeftBehind(epoch=0, packs={}, samples=0)


def _orchestrator(world: World) -> Orchestrator:
    config = world.config
    run = _Counted("sim:build", workers=config.workers, storage=URL, recovery=config.recovery,
                   cluster={"start_timeout": 30.0})  # fmt: skip
    run.world = world
    world.members = lambda: [] if run._run is None else run._run.ranks.members
    for number, rule in enumerate(config.rules):
        event = getattr(Events, rule.event)
        filtered = event(every=rule.every) if rule.every > 1 else event
        run.listen(filtered, _Handler(world, rule, number), engine=rule.engine, blocking=True)
    for rule in config.watched:
        event = getattr(Events, rule.event)
        filtered = event(every=rule.every) if rule.every > 1 else event
        run.listen(filtered, _Watcher(world, rule), engine=rule.engine, blocking=False)
    run.listen(Events.EXCEPTION_RAISED, lambda _, error: world.oracle.raised.append(str(error)))
    if config.evaluates:
        run.attach(Evaluate("evaluator"))
    if config.saves is not None:
        run.attach(Checkpoint(**config.saves, clock=world.clock.monotonic))
        run.attach(_Commits(world))
    return run


class _Counted(Orchestrator):
    """Tells the simulation how often it has evaluated."""

    world: World

    def evaluate(self, *given: Any, **named: Any) -> dict[str, Any]:
        self.world.evaluations += 1
        return super().evaluate(*given, **named)


class _Commits:
    """Hears of checkpoints."""

    def __init__(self, world: World) -> None:
        self._world = world

    def attach(self, run: Orchestrator) -> None:
        """Nothing to listen to."""

    def committed(self, run: Orchestrator, checkpoint: Any) -> None:
        self._world.note("driver", f"committed {checkpoint.name}")
        self._world.oracle.commits.append((checkpoint.name, checkpoint.manifest.iteration))


class _Watcher:
    """A handler for which nobody waits."""

    def __init__(self, world: World, rule: Rule) -> None:
        self._world = world
        self._rule = rule

    def __call__(self, run: Orchestrator) -> None:
        state, trainer = run.state_of(self._rule.engine), run.state
        count = state.counters[getattr(Events, self._rule.event)]
        visit = (trainer.iteration, self._world.evaluations) if self._rule.engine != TRAINER else 0
        self._world.oracle.watch(self._rule.engine, self._rule.event, count, visit)


class _Handler:
    """A handler for which ranks wait: it is put on record, and gives its orders."""

    def __init__(self, world: World, rule: Rule, number: int) -> None:
        self._world = world
        self._rule = rule
        self._number = number

    def __call__(self, run: Orchestrator) -> None:
        rule, state, world = self._rule, run.state_of(self._rule.engine), self._world
        count = state.counters[getattr(Events, rule.event)]
        numbers = tuple(sorted((name, value) for name, value in state.metrics.items()))
        if rule.event != "RESUMED":
            visit = world.evaluations if rule.engine != TRAINER else 0
            world.oracle.handle(rule.engine, rule.event, count, visit, self._number, numbers)
        world.note("handler", f"{rule.engine} {rule.event} #{count} begins")
        for number, order in enumerate(rule.does):
            tag = mix(rule.event, count, self._number, number) % 1000
            if order == "bump":
                run.call(bump, tag)
            elif order == "bump one":
                run.call(bump, tag, rank=tag % run._run.ranks.world_size if not world.config.elastic else 0)
            elif order == "shift":
                run.call(shift, tag)
            elif order == "evaluate":
                run.evaluate("evaluator")
            elif order.startswith("save"):
                run.checkpoint(wait=order == "save and wait")
            elif order == "terminate":
                run._run.terminate("a handler said so")
        world.note("handler", f"{rule.engine} {rule.event} #{count} ends")
