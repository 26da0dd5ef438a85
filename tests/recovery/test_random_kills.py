"""Random ranks are killed at random moments, again and again: the run ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import threading
from typing import Any

import pytest

from orchestrator import Orchestrator
from tests.process_ranks import ProcessGroup
from tests.recovery.jobs import PER_EPOCH, Job

SEED = int(os.environ.get("RANKFIRE_SEED", "20"))
KILLS = int(os.environ.get("RANKFIRE_KILLS", "6"))
APART = 5  # iterations between two kills, on the average
STEP = 0.02  # seconds that an iteration takes, about


class Killer:
    """Kills as planned; each time a while after all ranks have reported an iteration."""

    def __init__(self, kills: int, iterations: int, chance: random.Random) -> None:
        self._chance = chance
        self._due = sorted(chance.sample(range(2, iterations), kills), reverse=True)
        self._timers: list[threading.Timer] = []
        self.killed: set[int] = set()

    def see(self, run: Orchestrator, group: ProcessGroup, iteration: int) -> None:
        """An iteration is done."""
        if self._due and iteration >= self._due[-1]:
            self._due.pop()
            assert run._run is not None
            worker = self._chance.choice(run._run.ranks.members)
            self._timers.append(threading.Timer(self._chance.uniform(0, STEP), self._kill, [group, worker]))
            self._timers[-1].start()

    def _kill(self, group: ProcessGroup, worker: int) -> None:
        line = group.lines.get(worker)
        if line is not None and not line.ended.is_set():
            group.signal(worker)
            self.killed.add(worker)

    def end(self, run: Orchestrator, group: ProcessGroup) -> None:
        """Let the last one strike."""
        for timer in self._timers:
            timer.join()


@pytest.mark.timeout(120 + 10 * KILLS)
@pytest.mark.parametrize("ranks", [2, 3])
def test_random_kills_change_nothing(survives: Any, ranks: int) -> None:
    print(f"RANKFIRE_SEED={SEED}")
    epochs = 2 + KILLS * APART // PER_EPOCH
    killer = Killer(KILLS, (epochs - 1) * PER_EPOCH, random.Random(SEED + ranks))
    job = Job(
        workers={"count": ranks, "spares": 2},
        epochs=epochs,
        recovery={"restarts": {"crash": 10 * KILLS, "window": 0.001}},
        at_iteration=killer.see,
        at_end=killer.end,
    )
    ended = survives(job, fired=[], lost=None)
    assert killer.killed
    assert len(ended.told("WORKER_LOST")) + len(ended.told("SPARE_LOST")) == len(killer.killed)
