"""One training: the parts of the driver put together, and the order in which they act.

Who starts the ranks is in `ranks.py`, what happens at gates in `gatekeeper.py`, what is asked of ranks in `asking.py`,
how things come and faults end it in `loop.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from importlib import import_module
from typing import Any

from orchestrator.asking import Asking
from orchestrator.beginning import Beginning
from orchestrator.bus import EventBus
from orchestrator.checkpoints.registry import Registry
from orchestrator.cluster_events import Payload
from orchestrator.episode import Way
from orchestrator.errors import FencedError, RankfireError, RunInterrupted, SpecError, TrainingError, no_engine
from orchestrator.exchange import Group, Interrupt, LeaseLost
from orchestrator.gatekeeper import Gatekeeper
from orchestrator.headless import Headless
from orchestrator.journal import Journal
from orchestrator.lifecycle import Lifecycle, Phase
from orchestrator.limits import Limits
from orchestrator.loop import Loop
from orchestrator.moving import Moving
from orchestrator.notice import notice
from orchestrator.ranks import Ranks
from orchestrator.regrouping import Regrouping
from orchestrator.reserves import Reserves
from orchestrator.resume import check_data
from orchestrator.samples import samples_of
from orchestrator.saving import Saver
from orchestrator.settings import Settings
from orchestrator.timeouts import Timeouts
from orchestrator.verdict import Facts
from orchestrator.watching import Watching
from workers.events import Events
from workers.orders import Build, Go
from workers.parcels import TRAINER, GateKey, LoadPoint, Rewind, SnapshotLabel
from workers.rank import Membership

__all__ = ["Run"]

_logger = logging.getLogger(__name__)


class Run:
    """One training, from the first process to the last rank's end.

    Args:
        group: the workers.
        buses: per engine, the driver's handlers.
        journal: the record.
        registry: the checkpoints.
        settings: how many train and who waits, what happens when one is lost, and where the run's folder is.
        build: what a worker with this membership is told to build.
        limits: how long to train, and to wait.
    """

    def __init__(
        self,
        group: Group,
        buses: Mapping[str, EventBus],
        journal: Journal,
        registry: Registry,
        settings: Settings,
        *,
        build: Callable[[Membership], Build],
        limits: Limits,
    ) -> None:
        self.group = group
        self.journal = journal
        self.life = Lifecycle()
        self.stop_reason: str | None = None
        self.failure: TrainingError | None = None  # why what was trained is worth nothing, though nothing raised
        self.interrupted = False
        self.announcement: str | None = None  # told when the program is known to fit what it goes on from
        self.newest: Callable[[], LoadPoint | None] = lambda: None  # finds the newest valid checkpoint of this run
        self.recovered: Callable[[], None] = lambda: None  # called when ranks are whole again after a fault
        self.stand: Callable[[], None] = lambda: None  # called at a cut, while all ranks wait
        self._load: LoadPoint | None = None  # with what the run began
        self._at: GateKey | None = None  # where the ranks go on after a fault, if at a gate
        self._cut_wanted = False  # by somebody for whom training had not begun yet
        self.built: Callable[[], None] = lambda: None  # called when the program is known, before anything is trained
        self._buses = buses
        self._build = build
        self._limits = limits
        self.loop = Loop(group, self._ended)
        self.ranks = Ranks(
            self.loop, self.life, journal, world_size=settings.world_size, start_timeout=limits.start_timeout
        )
        self.gates = Gatekeeper(self.loop, self.ranks, buses, self.life, journal)
        self.asking = Asking(self.loop, self.ranks, self.gates)
        self._timeouts = Timeouts.of(settings.recovery.hang_timeout)
        self.saver = Saver(self.loop, self.asking, registry, self.ranks, patience=self._timeouts.saving)
        self._store: tuple[str, int] | None = None
        self.moving: Moving | None = None
        self.watching: Watching | None = None
        if group.needs_store:
            self._outlive_faults(settings)
        self.ranks.tell = self.tell
        self.gates.at_cut = self._at_cut
        self.loop.handle({Interrupt: self._interrupt, LeaseLost: self._fenced})
        self._headless = Headless(self.loop, journal, lambda: self._interrupt(Interrupt()))

    def _outlive_faults(self, settings: Settings) -> None:
        """Have lost ranks replaced, hangs found, and the world moved and resized."""
        way = Way(
            join=self._join,
            regrouped=self._regrouped,
            checkpoint=self._checkpoint,
            go=self._go,
            gate=lambda: self.gates.open[-1].key if self.gates.open else None,
            samples=lambda iteration: samples_of(self.ranks.programs.data, iteration),
            leave_behind=self.gates.left_behind.append,
            pause=self._halt,
            tell=self.tell,
        )
        timeouts = self._timeouts
        patience, silence = self._limits.start_timeout, timeouts.first
        self.reserves = Reserves(self.loop, self.ranks, settings.workers, patience=patience, silence=silence)
        regrouping = Regrouping(
            self.loop,
            self.life,
            self.ranks,
            self.reserves,
            way,
            settings.recovery,
            unblock=timeouts.unwind,
        )
        self.moving = Moving(self.loop, self.ranks, self.reserves, regrouping, self.gates, self.cut)
        self.watching = Watching(self.loop, self.ranks, settings.home, timeouts, self.tell)
        self.watching.leaving = self.moving.leave
        Beginning(self.loop, self.life, self.ranks, self.reserves, regrouping, settings.recovery, self.watching)
        self.moving.give_up = lambda: self._interrupt(Interrupt())

    def execute(self, load: LoadPoint | None, data: Mapping[str, Any] | None = None) -> None:
        """Start, train, and return when all ranks have finished. The caller stops the group, however this ends.

        PLACING    start the workers, which say `Hello`; import what is heavy meanwhile; deal the ranks
        BUILDING   every worker builds the program; from here on no handler may need a new gate; check names
        JOINING    the ranks meet at the store, and take up the checkpoint if there is one
        RUNNING    train    (`_train`), and wait for the last save

        Args:
            load: the checkpoint that the ranks take up.
            data: fingerprint of the data with which it was made, if training goes on where it stood.

        Raises:
            RankfireError: what ended it.
        """
        with ExitStack() as stack:
            self.ranks.start()
            # The driver imports torch and torchmetrics while the ranks import theirs, not before they start.
            from orchestrator.rendezvous import Rendezvous

            import_module("orchestrator.reduce")
            self.ranks.place()
            self._watch("building the program")
            self.ranks.build(self._build)
            for bus in self._buses.values():
                bus.seal()
            self._check_engines()
            self.built()
            check_data(data, self.ranks.programs.data)
            if self.announcement is not None:
                notice(self.announcement)
            self._store = stack.enter_context(Rendezvous(self.group.address())) if self.group.needs_store else None
            self._load = load
            self._join(None, load)
            self.gates.samples_before = self.ranks.samples
            self.ranks.tell_joined()
            self._train()

    def terminate(self, reason: str) -> None:
        """End training at the trainer's gate that is open, else at the next iteration that all ranks agree on."""
        if self.stop_reason is None:
            self.stop_reason = reason
        if self.interrupted:
            return  # it ends at the cut
        self.gates.then = "terminate"
        if not any(gate.key.engine == TRAINER for gate in self.gates.open):
            self.cut()

    def condemn(self, error: TrainingError) -> None:
        """End training because of what has become of it: nothing of it is saved from here on."""
        self.failure = self.failure or error
        self.terminate(str(error))

    def cut(self) -> None:
        """Have all ranks stand at a gate after one common iteration, unless training is about to end anyway."""
        if self.life.phase in {Phase.RUNNING, Phase.GATE}:
            self.asking.cut()
        else:
            self._cut_wanted = True

    def _train(self) -> None:
        """From `Go` to the last rank's `Finished`.

        RUNNING, the clock of training starts; Go to all ranks
        a cut, if it was ended while they started, or something waits for a boundary
        while a rank has not finished:
            handle what comes: arrivals open gates, faults raise    (`Loop.pump`)
        FINISHING: note what was dropped; the state stands where the ranks ended
        """
        self.gates.trained.go()
        if self.life.phase is Phase.JOINING:  # else a fault while they joined is mended, and they train already
            self._go()
        while not (self.gates.all_finished and self.saver.idle):
            self.loop.pump()
        self.gates.trained.stop()
        self._watch(None)
        self._headless.check()
        self.life.enter(Phase.FINISHING)
        self.gates.note_dropped()
        state, last = self._buses[TRAINER].state, self.gates.finished[0]
        self.journal.iteration, self.journal.epoch = last.iteration, last.epoch
        state.stand(iteration=last.iteration, epoch=last.epoch)
        if self.stop_reason is None and not all(word.completed for word in self.gates.finished.values()):
            self.stop_reason = "the ranks ended before the goal: a handler or step there called terminate or interrupt"

    def _join(self, rewinds: dict[int, Rewind] | None, load: LoadPoint | None) -> None:
        self._watch("joining the process group")
        self.ranks.join(
            self._store,
            timeout=self._timeouts.collective,
            forming=self._timeouts.forming,
            load=load,
            rewinds=rewinds,
        )

    def _go(self) -> None:
        """Have the ranks train; where a gate was open when a fault came, they will come to it again."""
        limits = self._limits
        if not self.journal.begun and self.group.needs_store:
            self.reserves.refill()
        self.journal.begun = True
        self.life.enter(Phase.GATE if self.gates.open else Phase.RUNNING)
        self.ranks.order_all(
            Go(
                max_epochs=limits.max_epochs,
                max_iters=limits.max_iters,
                epoch_length=limits.epoch_length,
                cut=self.asking.regroup(self._at),
            )
        )
        self._watch("training")
        self.asking.agree()
        ends = self.stop_reason is not None and self.gates.ended_at is None
        if self._cut_wanted or (ends and not self.gates.open):
            self.asking.cut()
        self._cut_wanted = False

    def _regrouped(self, lost: Collection[int], label: SnapshotLabel | None) -> None:
        self._at = None if label is None else label.gate
        self.gates.regroup()
        self.saver.regroup(lost)
        self.recovered()

    def _halt(self) -> None:
        self._watch(None)
        self.asking.see_failures()

    def _watch(self, phase: str | None) -> None:
        """From now on the ranks are in this phase; None: what they do is not looked at."""
        if self.watching is not None:
            self.watching.pause() if phase is None else self.watching.begin(phase)

    def tell(self, payload: Payload) -> None:
        """Write down what happened to the cluster, and tell driver handlers of it."""
        self.journal.record(payload)
        self.gates.tell(payload)

    def _at_cut(self) -> None:
        """All ranks stand after one common iteration: do what waited for that."""
        self.stand()
        if self.moving is not None:
            self.moving.at_cut()

    def _checkpoint(self) -> LoadPoint | None:
        newest = self.newest()
        return self._load if newest is None else self.saver.whence(newest)

    def _interrupt(self, _: Interrupt) -> None:
        """End at a cut, also if a gate is open: only there the ranks stand between iterations, and are saved.

        Raises:
            RunInterrupted: the ranks are still starting; there is nothing to save.
        """
        if not self.journal.begun:
            raise RunInterrupted
        self.interrupted = True
        self.stop_reason = self.stop_reason or "interrupted"
        self.gates.then = "interrupt"
        self.cut()

    def _fenced(self, lost: LeaseLost) -> None:
        raise self.loop.end(FencedError(lost.text))

    def _ended(self, error: RankfireError, facts: Facts) -> None:
        """Write down who was lost, and tell EXCEPTION_RAISED on the driver."""
        for worker in facts.lost:
            with suppress(FencedError):  # who has lost the run writes nothing more
                self.journal.record(facts.loss_of(worker))
        bus = self._buses[TRAINER]
        if bus.listens(Events.EXCEPTION_RAISED):
            try:
                bus.fire(Events.EXCEPTION_RAISED.key, bus.state.counters[Events.EXCEPTION_RAISED.key] + 1, error)
            except RankfireError as raised:  # it must not hide what it was told of
                _logger.error("a handler of EXCEPTION_RAISED raised an exception itself", exc_info=raised)

    def _check_engines(self) -> None:
        for name in self._buses:
            if name not in self.ranks.programs.engines:
                raise SpecError(no_engine(f"orchestrator.on(engine={name!r})", name, self.ranks.programs.engines))
