"""One training around its loop: the run's folder and journal, where to resume, Ctrl-C, the workers' start and end.

Whatever happens in between, the workers are ended, their places given back, the journal closed, in this order.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from orchestrator.bus import EventBus, expressions_of
from orchestrator.checkpoints.draft import versions
from orchestrator.checkpoints.registry import Committed
from orchestrator.contents import changed_config, digests_of
from orchestrator.errors import (
    FencedError,
    HeadLostError,
    RunInterrupted,
    SystemFailure,
    TrainingError,
    WorkerLostError,
)
from orchestrator.exchange import Group, LeaseLost
from orchestrator.group import RayGroup
from orchestrator.journal import Journal
from orchestrator.leaving import leave
from orchestrator.lifecycle import Phase
from orchestrator.limits import Limits
from orchestrator.mishaps import note_mishaps
from orchestrator.notice import notice
from orchestrator.ownership import see_whose
from orchestrator.parts import Parts
from orchestrator.recording import driver_log
from orchestrator.refused import in_the_way, nothing_left_if_refused
from orchestrator.result import RunResult, Status
from orchestrator.resume import (
    Resume,
    already_done,
    changed_versions,
    dropped,
    load_of,
    newest,
    newest_load,
    place_in_words,
    refuse_existing,
    set_aside,
    starting_point,
    way_on,
)
from orchestrator.run import Run
from orchestrator.signals import Signals
from orchestrator.splits import Splits
from orchestrator.stopping import Heeding
from workers.failpoints import TRACE, VARIABLE, failpoint
from workers.orders import Build
from workers.parcels import TRAINER, LoadPoint
from workers.rank import Membership

__all__ = ["train"]

THEIRS = "what the checkpoint holds, such as an optimizer's learning rate, is that of the checkpoint all the same"
SALVAGE = 10.0  # seconds that a save in flight gets when the run ends with an error


def train(parts: Parts, limits: Limits, resume: Resume) -> RunResult:
    """Train to the end.

    Raises:
        RankfireError: what ended the run otherwise; its class tells whose fault it was.
    """
    see_whose(parts.settings.home, parts.settings.run)
    with contextlib.ExitStack() as stack:
        root, run, journal = parts.settings.root, parts.settings.run, parts.journal
        stack.callback(parts.lease.release)
        stack.enter_context(nothing_left_if_refused(root, run, parts.lease, lambda: journal.begun))
        stack.callback(_close, journal)
        _own(parts, resume)
        stack.enter_context(driver_log(parts.settings.logs))
        return _train(parts, limits, resume)


def _own(parts: Parts, resume: Resume) -> None:
    """Take the run, and open its folder and journal."""
    settings = parts.settings
    try:
        parts.lease.acquire(notice)
        if resume.fresh and (aside := set_aside(settings.root, settings.run)) is not None:
            notice(f"what run {settings.run!r} had is now {settings.root.locate(aside)}")
        if resume.mode == "never":
            refuse_existing(settings.home, settings.run)
        settings.home.tidy()
        if settings.text is not None:
            settings.home.replace("spec.yaml", settings.text.encode())
        parts.journal.start(parts.lease.token)
        if settings.storage.startswith("memory://"):
            notice(f"run {settings.run!r} is in the memory of this process: nothing of it will be left when that ends")
    except OSError as error:
        raise SystemFailure(in_the_way(settings.home, error)) from error


def _close(journal: Journal) -> None:
    with contextlib.suppress(FencedError, OSError):
        journal.close()


def _train(parts: Parts, limits: Limits, resume: Resume) -> RunResult:
    settings, journal = parts.settings, parts.journal
    with journal.recorded():
        parts.registry.sweep()
        point, load = _begin_at(parts, resume)
        if point is not None and (done := already_done(point, limits)) is not None:
            journal.write("RUN_COMPLETED", already=True, checkpoint=point.name)
            notice(f"run {settings.run!r} is already done: {done}")
            return _result(parts, "completed")
        splits = Splits(parts.datasets, settings.world_size)
        run = _begin(parts, _make_run(parts, limits, splits), point, load)
    try:
        with contextlib.closing(splits):
            _execute(parts, run, load, None if point is None else point.manifest.data)
    except BaseException as error:  # however it ends, the record says so
        ended = _ended_badly(parts, run, error)
        if ended is error:
            raise
        raise ended from error
    if run.interrupted and run.failure is None:
        run.life.enter(Phase.STOPPED)
        journal.write("RUN_INTERRUPTED")
        then = way_on(parts.registry, journal.iteration, limits)
        raise RunInterrupted(f"run {settings.run!r} was interrupted after iteration {journal.iteration}; {then}")
    run.life.enter(Phase.COMPLETED)
    status: Status = "completed" if run.stop_reason is None else "terminated"
    reason = run.stop_reason if run.failure is None else str(run.failure)
    journal.write("RUN_COMPLETED", status=status, reason=reason, metrics=parts.buses[TRAINER].state.metrics)
    return _result(parts, status, reason, run.failure)


def _begin(parts: Parts, run: Run, point: Committed | None, load: LoadPoint | None) -> Run:
    """Write down and tell what begins, and where; let the orchestrator give it orders."""
    settings, journal = parts.settings, parts.journal
    journal.write(
        "RUN_STARTED", run=settings.run, world_size=settings.world_size, pid=os.getpid(),
        host=socket.gethostname(), program=settings.program_name, versions=versions(), token=parts.lease.token,
        roots=settings.roots,
    )  # fmt: skip
    notice(f"run {settings.run!r}: {settings.ranks_in_words}; what it keeps goes to {settings.home.url}")
    parts.started(run)
    note_mishaps(run.loop, journal)
    parts.lease.when_lost(lambda text: run.group.tell(LeaseLost(text=text)))
    if point is not None:
        journal.write("RESUMED", checkpoint=point.name)
        run.announcement = f"run {settings.run!r} goes on from {place_in_words(point, settings.world_size)}"
        run.built = partial(_compare_state, run, run.built, point.manifest.state)
    elif load is not None:
        journal.write("STARTED_FROM", checkpoint=load.url, state=load.entries)
    failpoint("load.verified")
    return run


def _compare_state(run: Run, built: Callable[[], None], state: Mapping[str, int]) -> None:
    """When the program is built: after what else is to be checked, tell what of a checkpoint has no place in it."""
    built()
    if (told := dropped(state, run.ranks.state)) is not None:
        run.journal.write("STATE_DROPPED", text=told)
        run.announcement = f"{run.announcement}; {told}"


def _ended_badly(parts: Parts, run: Run, error: BaseException) -> BaseException:
    """Write down what ended a run before its end; gives the error that tells it, with the way on."""
    name, then = f"run {parts.settings.run!r}", way_on(parts.registry, parts.journal.iteration)
    if isinstance(error, RunInterrupted):
        run.life.enter(Phase.STOPPED)
        parts.journal.write("RUN_INTERRUPTED")
        return RunInterrupted(f"{name} was interrupted before it trained; {then}")
    if isinstance(error, KeyboardInterrupt):
        run.life.enter(Phase.STOPPED)
        with contextlib.suppress(FencedError):
            parts.journal.write("RUN_INTERRUPTED")
        return RunInterrupted(f"{name} was interrupted at once; {then}")
    run.life.enter(Phase.FAILED)
    if isinstance(error, WorkerLostError | HeadLostError):
        error.args = (f"{error}; {then}",)
    with contextlib.suppress(FencedError):
        parts.journal.write("RUN_FAILED", error=type(error).__name__, text=str(error))
    return error


def _execute(parts: Parts, run: Run, load: LoadPoint | None, data: Mapping[str, Any] | None) -> None:
    """Run, and end the workers in every case: gently if all went well, else at once."""
    grace = 0.0
    out = partial(leave, parts.settings.run, parts.journal, parts.lease)
    signals = Signals(run.group, starting=lambda: run.ranks.starting, leave=out)
    with signals, contextlib.ExitStack() as stack:
        stack.callback(run.saver.abandon)  # only now nobody writes there any more
        stack.callback(lambda: _stop(run, grace))
        stack.callback(run.saver.salvage, SALVAGE)
        stack.callback(signals.stopping)
        stack.enter_context(Heeding(parts.settings.home, parts.lease.token, run.group.interrupt))
        run.execute(load, data)
        grace = 2.0


def _stop(run: Run, grace: float) -> None:
    left = run.group.stop(grace=grace)
    if left:
        run.journal.write("LEFT_BEHIND", processes=left)
        notice(f"could not be ended: {', '.join(left)}")


def _make_run(parts: Parts, limits: Limits, splits: Splits) -> Run:
    settings = parts.settings
    group: Group
    if settings.workers.count == 0:
        from orchestrator.local import LocalGroup  # a session in this process brings torch with it

        group = LocalGroup(turn=lambda: run.loop.pump(), tick=lambda: run.loop.tick())
    else:
        group = RayGroup(
            settings.workers,
            settings.cluster,
            roots=settings.roots,
            environment=_environment(),
            logs=settings.logs,
        )
    gates = expressions_of(parts.buses, EventBus.gates)
    watches = expressions_of(parts.buses, EventBus.watches)

    may_recover = settings.world_size > 1 or settings.workers.elastic  # one alone has nobody who could come back to it

    def build(membership: Membership) -> Build:
        return Build(
            program=settings.program,
            config=settings.config,
            seed=settings.seed,
            membership=membership,
            roots=settings.roots,
            gates=gates,
            watches=watches,
            handlers=parts.handlers,
            threads=None if settings.workers.count == 0 else max(1, int(settings.workers.cpus)),
            snapshots=settings.recovery.snapshots.every if may_recover else None,
            datasets=splits.of(membership),
        )

    run = Run(
        group,
        parts.buses,
        parts.journal,
        parts.registry,
        settings,
        build=build,
        limits=limits,
    )
    run.newest = lambda: newest_load(parts.registry, partial(_refused, parts.journal), run.saver.went_back)
    return run


def _environment() -> dict[str, str]:
    """Variables of this process that the ranks need as well: what is armed here is armed there."""
    return {name: os.environ[name] for name in (VARIABLE, TRACE) if name in os.environ}


def _begin_at(parts: Parts, resume: Resume) -> tuple[Committed | None, LoadPoint | None]:
    """The run's own checkpoint to go on from, and what the ranks load."""
    settings = parts.settings
    point = newest(parts.registry, resume, partial(_refused, parts.journal))
    if point is None:
        start = parts.start_from
        return None, None if start is None else starting_point(start, settings.root)
    manifest = point.manifest
    if (changed := changed_versions(manifest.versions, versions())) is not None:
        parts.journal.write("VERSIONS_CHANGED", text=changed)
        notice(
            f"checkpoint {point.name} was made with other versions: {changed}; results may differ in their last bits"
        )
    changed = changed_config(manifest.driver.get("config", {}), digests_of(settings.config))
    if changed is not None and "config" in manifest.driver:
        parts.journal.write("CONFIG_CHANGED", text=changed)
        notice(f"config has changed since checkpoint {point.name}: {changed}; {THEIRS}")
    state = parts.buses[TRAINER].state
    state.stand(iteration=manifest.iteration, epoch=manifest.epoch, epoch_length=manifest.epoch_length)
    state.metrics.update(manifest.metrics)
    parts.evaluated.update(manifest.driver.get("evaluated", {}))
    parts.journal.iteration, parts.journal.epoch = manifest.iteration, manifest.epoch
    for name, saved in manifest.driver.get("handlers", {}).items():
        if name in parts.stateful:
            parts.stateful[name].load_state_dict(saved)
    return point, load_of(point)


def _refused(journal: Journal, text: str) -> None:
    """A checkpoint is damaged, and the one before it is tried."""
    journal.write("CHECKPOINT_REFUSED", text=text)
    notice(text)


def _result(parts: Parts, status: Status, reason: str | None = None, failure: TrainingError | None = None) -> RunResult:
    state = parts.buses[TRAINER].state
    committed = parts.registry.committed()
    last = committed[-1].url if committed else None
    metrics = dict(state.metrics)
    return RunResult(status=status, state=state, metrics=metrics, checkpoint=last, reason=reason, failure=failure)
