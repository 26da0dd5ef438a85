"""Gates on the driver: when the last rank arrives, reduce, fire the handlers once, release. And events seen in passing.

Nothing is asked of the ranks here: what a handler orders while a gate is open goes through `asking.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from orchestrator.bus import EventBus, for_ranks
from orchestrator.cluster_events import Payload
from orchestrator.errors import GateMismatchError, RankfireError
from orchestrator.journal import Journal
from orchestrator.lifecycle import Lifecycle, Phase
from orchestrator.loop import Loop
from orchestrator.passed import Given, OpenGate, PassedGate, PassedGates
from orchestrator.ranks import Ranks
from orchestrator.roll_call import Asked, Observations, RollCall, parted
from orchestrator.stopwatch import Stopwatch
from orchestrator.verdict import of_repetition
from workers.events import Events
from workers.left_behind import LeftBehind
from workers.messages import Arrived, Finished, Observed, Report
from workers.orders import Release
from workers.parcels import CUT, TRAINER, GateKey, Pack, Then

__all__ = ["Gatekeeper"]


class Gatekeeper:
    """The gates of a run.

    Args:
        loop: where arrivals come from.
        ranks: who must arrive, and be released.
        buses: per engine, the handlers.
        life: the run's phase.
        journal: the run's record.
    """

    def __init__(
        self, loop: Loop, ranks: Ranks, buses: Mapping[str, EventBus], life: Lifecycle, journal: Journal
    ) -> None:
        self.finished: dict[int, Finished] = {}
        self.then: Then = "go on"  # what the trainer is told at its next release; "interrupt" is told at a cut only
        self.at_cut: Callable[[], None] | None = None  # called at a cut, while all ranks wait
        self.ended_at: GateKey | None = None  # where the trainer was first told to end
        self.cut: Callable[[], None] = lambda: None  # has ranks stand after one common iteration
        self.cut_reached: Callable[[], None] = lambda: None  # called before it: the next cut is another
        self.cut_reached_again: Callable[[int], None] = lambda count: None  # called when ranks are at one once more
        self.open: list[OpenGate] = []  # gates whose handlers are running, outermost first
        self.passed = PassedGates()
        self.came_back: Callable[[GateKey], None] = lambda key: None  # called when ranks pass a gate once more
        self.asked: list[Asked] = []  # orders that are being carried out, outermost first; kept by who gives them
        self.repeated: list[Given] = []  # orders that ranks which went back carry out again, outermost first
        self.left_behind: list[LeftBehind] = []  # by ranks whose place nobody took
        self.packs: dict[str, list[Mapping[str, Pack]]] = {}  # engine → what each rank brought last
        self.samples = 0  # consumed by all ranks, as of the last report of all of them
        self.samples_before = 0  # of these, those that an earlier life of the run had consumed
        self.of_now: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict  # without what was measured earlier
        self.trained = Stopwatch()  # stands while the ranks wait at gates
        self._loop = loop
        self._ranks = ranks
        self._buses = buses
        self._life = life
        self._journal = journal
        self._roll_call: RollCall[Arrived] = RollCall(ranks.world_size)
        self._observations: Observations[Report] = Observations(ranks.world_size)
        loop.handle({Arrived: self._on_arrived, Observed: self._on_observed, Finished: self._on_finished})

    @property
    def training_seconds(self) -> float:
        """Seconds in which the ranks trained: those in which they waited at gates are left out."""
        return self.trained.seconds

    @property
    def all_finished(self) -> bool:
        """Whether every rank's trainer has come to its end."""
        return len(self.finished) == self._ranks.world_size

    def note_dropped(self) -> None:
        """At the end of training: write down how many watched firings, at least, no handler was told of."""
        seen = self._observations
        nowhere = max((pulse.drops for pulse in self._loop.pulses.values()), default=0)  # dropped by all ranks, maybe
        if count := max(seen.dropped + seen.incomplete, nowhere):
            self._journal.write("OBSERVATIONS_DROPPED", count=count)

    def check(self) -> None:
        """See that all ranks can still meet, after one has arrived, answered or finished.

        Raises:
            GateMismatchError: they can't; names who is where.
        """
        here = bool(self.open) and self.open[-1].present  # else the ranks are on their way back to what was asked
        places = parted(self._roll_call, self.asked[-1] if self.asked and here else None, self.finished)
        if places is not None:
            raise self._loop.end(GateMismatchError.at(places))

    def regroup(self) -> None:
        """The ranks have gone back to a snapshot: they come to gates again, at some of which they were before."""
        world = self._ranks.world_size
        self._roll_call = RollCall(world)
        self._observations.regroup(world)
        self.finished.clear()
        for gate in self.open:
            gate.present = False
            for given in gate.given:
                if not given.done:
                    given.regroup(world)

    def wait_present(self) -> None:
        """Wait until the ranks are at the innermost open gate."""
        while not self.open[-1].present:
            self._loop.pump()

    def tell(self, payload: Payload) -> None:
        """Fire an event of the cluster on the driver: run the handlers due.

        Args:
            payload: what happened.

        Raises:
            RankfireError: one of them raised, which ends the run.
        """
        with self._final():
            self._buses[TRAINER].tell(payload)

    @contextmanager
    def _final(self) -> Iterator[None]:
        """What handlers raise inside this block ends the run: a handler around them must not swallow it."""
        try:
            yield
        except RankfireError as error:
            ended = self._loop.end(error)
            if ended is error:
                raise
            raise ended from error

    @contextmanager
    def _elsewhere(self) -> Iterator[None]:
        """Inside this block the trainer's state is that of where the ranks are; then what it was before."""
        state, journal, samples = self._buses[TRAINER].state, self._journal, self.samples
        place, metrics = (state.iteration, state.epoch, state.epoch_length), dict(state.metrics)
        yield
        state.stand(iteration=place[0], epoch=place[1], epoch_length=place[2])
        journal.iteration, journal.epoch, self.samples = state.iteration, state.epoch, samples
        state.metrics.clear()
        state.metrics.update(metrics)

    # ---------------------------------------------------------------- what comes
    def _on_arrived(self, message: Arrived) -> None:
        self._roll_call.arrive(message.rank, message.gate, message)
        self._loop.facts.phases[message.worker] = f"waiting at {message.gate}"
        self.check()
        if self._roll_call.full:
            key, reports = self._roll_call.take()
            after = min(report.after for report in reports.values())
            if known := [gate for gate in self.open if gate.key == key]:
                self._come_back(known[0], after, reports)
            elif (passed := self.passed.get(key)) is not None:
                self._pass_again(passed, after, reports)
            else:
                self._open(key, reports)

    def _on_observed(self, message: Observed) -> None:
        reports = self._observations.report(message.rank, message.gate, message)
        if reports is not None:
            self._fire(message.gate, reports)

    def _on_finished(self, message: Finished) -> None:
        self.finished[message.rank] = message
        self.check()

    # ---------------------------------------------------------------- a gate
    def _open(self, key: GateKey, reports: Mapping[int, Arrived]) -> None:
        """All ranks wait: what happens until they are released.

        GATE, and the clock of training stops, unless this gate is within another
            at a cut: take the ranks' position, call `at_cut`
            else: reduce, run the handlers due    (`_fire`; an evaluation that one of them orders may open gates within)
        RUNNING, and the clock goes on, unless this gate is within another
        Release to all ranks, with the metrics, and what the trainer does then
        """
        outermost = not self.open
        if outermost:
            self._life.enter(Phase.GATE)
            self.trained.stop()
        gate = OpenGate(key=key)
        self.open.append(gate)
        if key.event == CUT:
            self._take_position(key, reports)
            self.cut_reached()
            if self.at_cut is not None:
                self.at_cut()
        else:
            self._fire(key, reports)
        self.wait_present()
        self._loop.check()  # a handler that swallowed what ended the run does not keep it alive
        self.open.pop()
        told = key.engine == TRAINER and self.then != "interrupt"
        if key.event == CUT:  # one on the way back to where more was done already tells nothing
            told = outermost and self.ended_at in (None, key)
        with self._final():
            metrics = for_ranks(self._buses[key.engine].state.metrics)
        if outermost:
            self.trained.go()
            self._life.enter(Phase.RUNNING)
        lasting = gate.lasting()
        release = Release(
            gate=key,
            metrics=metrics,
            then=self.then if told else "go on",
            order=gate.reached,
        )
        iteration = self._buses[TRAINER].state.iteration
        self.passed.add(key, PassedGate(iteration=iteration, given=lasting, release=release))
        self._ranks.order_all(release)
        if release.then != "go on":
            self.ended_at = self.ended_at or key
        elif outermost and self.then == "interrupt":
            self.cut()  # if one was passed on the way back to this gate, nothing was told there

    def _pass_again(self, gate: PassedGate, after: int, reports: Mapping[int, Report]) -> None:
        """Ranks that went back are at a gate that was passed: they are told what they were told then."""
        if not self._give_again(gate.given, after):
            return
        outermost = not self.open
        if outermost:
            self._life.enter(Phase.GATE)
        key = gate.release.gate
        self.open.append(OpenGate(key=key, given=list(gate.given)))
        with self._elsewhere():
            if key.event == CUT:
                self.cut_reached_again(key.count)
            self._take_position(key, reports)
            self._buses[key.engine].state.metrics.update(gate.release.metrics)
            self.came_back(key)
            self.wait_present()
        self.open.pop()
        if outermost:
            self._life.enter(Phase.RUNNING)
        self._ranks.order_all(gate.release)

    def _come_back(self, gate: OpenGate, after: int, reports: Mapping[int, Report]) -> None:
        """Ranks that went back are at a gate whose handler is still running: it goes on, and never learns."""
        if not self._give_again(gate.lasting(), after):
            return
        gate.present = True
        self._take_position(gate.key, reports)  # on their way they may have stood at a cut
        if gate.key.event == CUT:
            self.cut_reached_again(gate.key.count)
        if gate.given and not gate.given[-1].done:
            self.give(gate.given[-1])

    def give(self, given: Given) -> None:
        """Send an order to the ranks that it asks."""
        for rank in given.asked:
            self._ranks.order(rank, given.make(given.number, rank))

    def _give_again(self, orders: list[Given], after: int) -> bool:
        """Have ranks that went back before these orders carry them out once more; False if they went back again."""
        generation = self._ranks.generation
        for given in orders:
            if given.number <= after:
                continue
            again = replace(given, answers={}, asked=list(given.asked), done=False)
            again.regroup(self._ranks.world_size)
            self.repeated.append(again)
            self.give(again)
            while len(again.answers) < len(again.asked) and self._ranks.generation == generation:
                self._loop.pump()
            self.repeated.remove(again)
            if self._ranks.generation != generation:
                return False
            if again.failures and not given.failures:  # the ranks differ from now on
                raise self._loop.end(of_repetition(given.what, again.failures))
        return True

    def _fire(self, key: GateKey, reports: Mapping[int, Report]) -> None:
        """Reduce what the ranks brought, and run the handlers due."""
        from orchestrator.reduce import reduce_numbers, reduce_packs  # imported by `Run` while the ranks start

        bus = self._buses[key.engine]
        self._take_position(key, reports)
        in_order = [reports[rank] for rank in sorted(reports)]
        gone = [one.packs for one in self.left_behind if one.epoch == in_order[0].epoch and key.engine == TRAINER]
        packs = [*(report.packs for report in in_order), *gone]
        self.packs[key.engine] = [report.packs for report in in_order]
        bus.state.metrics.update(reduce_packs(packs, self._ranks.programs.empty_metrics(key.engine)))
        bus.state.output = reduce_numbers([report.output for report in in_order])
        with self._final():  # these ranks are not released
            bus.fire(key.event, key.count)
        if key.engine == TRAINER and key.event == Events.EPOCH_COMPLETED.key:  # with what the handlers measured
            self._journal.write("EPOCH_COMPLETED", metrics=self.of_now(bus.state.metrics))

    def _take_position(self, key: GateKey, reports: Mapping[int, Report]) -> None:
        first, state = reports[0], self._buses[key.engine].state
        state.stand(iteration=first.iteration, epoch=first.epoch, epoch_length=first.epoch_length)
        if key.engine == TRAINER:
            self._journal.iteration, self._journal.epoch = first.iteration, first.epoch
            gone = sum(one.samples for one in self.left_behind)
            self.samples = gone + sum(report.samples for report in reports.values())
