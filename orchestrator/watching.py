"""The driver's eye on the ranks: pulses go to the watch, and what it sees is told, and mended.

A hang ends with the stacks of all ranks in the run's folder and the laggard ended; a straggler and a node that is about
to go are told. Who hangs is decided in `watch.py`; what follows, in `regrouping.py`, and before training in
`beginning.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from orchestrator.cluster_events import HangDetected, Payload, PreemptionNotice, StragglerDetected
from orchestrator.loop import Loop
from orchestrator.notice import notice
from orchestrator.ranks import Ranks
from orchestrator.timeouts import Timeouts
from orchestrator.verdict import verdict
from orchestrator.watch import Beat, Hang, Straggler, Watch
from orchestrator.wording import name_ranks
from workers.messages import Pulse
from workers.storage import Storage

__all__ = ["Watching"]

LOOK = 0.5  # seconds between two looks


class Watching:
    """Watches the ranks of a run.

    Args:
        loop: what comes, and what time it is.
        ranks: who is who.
        home: the run's folder.
        timeouts: how long a rank may stand still.
        tell: called with each cluster event.

    Attributes:
        leaving: called when nodes are about to be taken away on which ranks are, with the seconds left.
    """

    def __init__(
        self,
        loop: Loop,
        ranks: Ranks,
        home: Storage,
        timeouts: Timeouts,
        tell: Callable[[Payload], None],
    ) -> None:
        self.leaving: Callable[[float], None] = lambda seconds: None
        self._loop = loop
        self._ranks = ranks
        self._home = home
        self._tell = tell
        self._watch = Watch(timeouts)
        self._looked = 0.0
        self._on = self._training = False
        self._watched: list[int] = []  # workers, in the order in which the watch knows them: ranks first
        self._told: set[str] = set()  # nodes of which it is known that they go
        loop.on_tick.append(self._tick)
        loop.heard = self._hear
        ranks.told = self._ordered

    def begin(self, phase: str = "training") -> None:
        """The ranks of a generation train from now on, or build or join; while they build, spares are watched too."""
        building = phase.startswith("building")
        self._watched = [*self._ranks.members, *(self._ranks.spares if building else ())]
        self._on, self._training = True, phase == "training"
        setting_up = not self._training
        self._watch.begin(range(len(self._watched)), now=time.monotonic(), phase=phase, setting_up=setting_up)

    def pause(self) -> None:
        """They do not: another generation is being formed, or the run ends."""
        self._watch.begin((), now=time.monotonic())
        self._on = False

    # ---------------------------------------------------------------- what comes
    def _hear(self, pulse: Pulse) -> None:
        if pulse.worker not in self._watched:  # a spare, which may say the number of a rank that is another's
            return
        self._watch.hear(
            Beat(
                rank=self._watched.index(pulse.worker),
                phase=pulse.phase,
                iteration=pulse.iteration,
                progress=pulse.moves,
                idle=pulse.idle,
                at=time.monotonic(),
                busy=pulse.busy,
            )
        )

    def _ordered(self, ranks: list[int]) -> None:
        self._watch.ordered(ranks, time.monotonic())

    def _tick(self) -> None:
        now = time.monotonic()
        if not self._on or now - self._looked < LOOK:
            return
        self._looked = now
        if self._training:
            self._look_at_nodes()
        seen = self._watch.look(now)
        for straggler in [one for one in seen if isinstance(one, Straggler)]:
            self._tell_straggler(straggler)
        hangs = [one for one in seen if isinstance(one, Hang)]
        self._give_up([hang for hang in hangs if hang.rank >= self._ranks.world_size])
        if hangs := [hang for hang in hangs if hang.rank < self._ranks.world_size]:
            self._mend(hangs)

    # ---------------------------------------------------------------- what is seen
    def _tell_straggler(self, straggler: Straggler) -> None:
        self._tell(
            StragglerDetected(
                rank=straggler.rank, ratio=straggler.ratio, seconds=straggler.seconds, others=straggler.others
            )
        )

    def _give_up(self, hangs: list[Hang]) -> None:
        """Spares that gave no sign of life while all build are lost, and nobody waits for them."""
        for worker, hang in [(self._watched[hang.rank], hang) for hang in hangs]:
            self._loop.facts.hung.add(worker)
            self._loop.facts.lost[worker] = f"it hung: {hang}"
        if hangs:
            self._loop.recover()

    def _mend(self, hangs: list[Hang]) -> None:
        """Write down where every rank stands, name the laggard, end it; if several may be it, all but those let go."""
        members, facts = self._ranks.members, self._loop.facts
        folder = self._write_stacks(members, max(hang.iteration for hang in hangs))
        where = "" if folder is None else f"; the stacks of all ranks are in {folder}"
        for hang in hangs:
            self._tell(
                HangDetected(
                    rank=hang.rank,
                    how=hang.how,
                    seconds=hang.seconds,
                    phase=hang.phase,
                    iteration=hang.iteration,
                    sure=hang.sure,
                    text=str(hang),
                    stacks=folder,
                )
            )
            doubt = "" if hang.sure else ", or waits for one that does"
            notice(f"rank {hang.rank} hangs{doubt}: {hang}{where}")
            if hang.sure:
                facts.hung.add(members[hang.rank])
                facts.lost[members[hang.rank]] = f"it hung: {hang}"
        if not any(hang.sure for hang in hangs):
            ranks = name_ranks(hang.rank for hang in hangs)
            told = f"{ranks}: {hangs[0]}{where}"
            facts.standing = f"ranks wait for each other, in different collectives or for one that hangs; {told}"
        if not self._loop.recover():  # they were still starting, and nobody can stand in
            raise self._loop.end(verdict(facts))

    def _write_stacks(self, members: list[int], iteration: int) -> str | None:
        """The stacks of all ranks, one file each; gives their folder, None if it can't be written."""
        folder = f"hangs/{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-iteration-{iteration}"
        try:
            here = [worker for worker in members if worker in self._loop.facts.places]
            for worker, text in self._loop.group.stacks(here).items():
                with self._home.create(f"{folder}/rank-{members.index(worker):04d}.txt") as file:
                    file.write(text.encode())
        except OSError as error:  # of no consequence for the ranks
            notice(f"the stacks of the ranks can't be written: {error.strerror or error}")
            return None
        return self._home.locate(folder)

    def _look_at_nodes(self) -> None:
        """Nodes that are about to be taken away: nothing is started there any more, and who is there moves."""
        facts = self._loop.facts
        draining = self._loop.group.draining()
        on_them = {worker for worker, place in facts.places.items() if place.node in draining}
        facts.draining.update(on_them)
        self._loop.suspects.update(draining)
        for node, seconds in draining.items():
            if node in self._told:
                continue
            self._told.add(node)
            ranks = sorted(facts.ranks[worker] for worker in on_them if worker in self._ranks.members)
            host = next((place.host for place in facts.places.values() if place.node == node), "")
            self._tell(PreemptionNotice(node=node, host=host, seconds=seconds, ranks=tuple(ranks)))
            notice(f"node {node[:12]} goes in {seconds:.0f} s; ranks there: {', '.join(map(str, ranks)) or 'none'}")
            if ranks:
                self.leaving(seconds)
