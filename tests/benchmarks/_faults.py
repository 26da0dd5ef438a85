"""Strikes from outside: starts a training, watches the trails of its ranks, stops or kills one of them, and waits.

Only processes whose pid a rank itself has written down are ever struck.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from orchestrator.journal import read_journal
from tests.benchmarks import _report
from tests.benchmarks._trail import Recovery, Trails, completions, recovery

HERE = Path(__file__).resolve().parent
LOOK = 0.02  # s between two looks at the trails
STEADY = 30  # iterations that a group completes before it is struck: peers have made checkpoints by then
FOREVER = 10**7  # iterations
T = TypeVar("T")


@dataclass(frozen=True)
class Side:
    """A way to train the perceptron.

    Args:
        name: for the table.
        command: what Python runs; the folder is appended.
        ranks: how many train, as far as all is well.
        spares: processes that wait beside them then.
        environment: added to that of the command.
    """

    name: str
    command: Sequence[str]
    ranks: int = 2
    spares: int = 0
    environment: dict[str, str] = field(default_factory=dict)


def rankfire(name: str, *, workers: dict[str, Any], iterations: int = FOREVER, **options: Any) -> Side:
    """Our side, with some options of `Orchestrator`.

    Its faults come closer together than any that a budget of restarts is made for: what is a second ago is forgotten.
    """
    options["recovery"] = {"restarts": {"window": 1.0}, **options.get("recovery", {})}
    options |= {"iterations": iterations, "workers": workers}
    command = [str(HERE / "_mlp_rankfire.py"), json.dumps(options)]
    return Side(name, command, ranks=workers["count"], spares=workers.get("spares", 0))


def torchrun(*, every: int = 10, timeout: float = 1800, iterations: int = FOREVER) -> Side:
    """The peer on torchrun, with its defaults but for the number of restarts and for the store.

    By default (torch 2.13) the ranks of a restart find the addresses that those before left in a store which outlives
    them, and most restarts hang; with a store of their own they do not.
    """
    elastic = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1000"]
    arguments = [str(every), str(timeout), str(iterations)]
    command = [*elastic, str(HERE / "peers" / "mlp_torchrun.py"), *arguments]
    return Side("torchrun", command, environment={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})


def ray_train(*, every: int = 10, timeout: float = 1800, poll: float | None = None) -> Side:
    """The peer on Ray Train v2; `poll` is how often its controller looks at its workers, by default every 2 s."""
    command = [str(HERE / "peers" / "mlp_ray_train.py"), str(every), str(timeout), str(FOREVER)]
    if poll is None:
        return Side("Ray Train", command)
    return Side(f"Ray Train, poll {poll} s", command, environment={"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(poll)})


class Training:
    """A training that goes on while it is watched and struck."""

    def __init__(self, side: Side, ended: Callable[[], bool], folder: Path) -> None:
        self.side = side
        self.folder = folder
        self.trails = Trails(folder)
        self.ended = ended

    def wait(self, condition: Callable[[], T | None], what: str, deadline: float) -> T:
        """Look at the trails until the condition holds.

        Raises:
            TimeoutError: it did not within `deadline` seconds, or the training has ended.
        """
        until = time.monotonic() + deadline
        while True:
            self.trails.look()
            if (found := condition()) is not None:
                return found
            if self.ended() or time.monotonic() > until:
                how = "ended" if self.ended() else f"went on for {deadline:g} s"
                raise TimeoutError(f"{self.side.name}: {how} without {what}\n{_report.tail(self.folder)}")
            time.sleep(LOOK)

    def steady(self, deadline: float = 120) -> None:
        """Wait until all ranks have completed some iterations together, and their spares have built."""
        self.wait(lambda: self._steady() or None, "training steadily", deadline)

    def _steady(self) -> bool:
        steps = self.trails.steps
        newest = max(steps, key=lambda step: step.generation, default=None)
        if newest is None or newest.world_size != self.side.ranks:
            return False
        done = [key for key in completions(steps) if key[0] == newest.generation]
        return len(done) >= STEADY and self._ready() >= self.side.spares

    def _ready(self) -> int:
        """Spares that have built, by the run's journal: a trail is there already when that begins."""
        waiting = {process.pid for process in self.trails.waiting()}
        lines = [line for path in self.folder.glob("runs/*/journal.jsonl") for line in read_journal(path)]
        return len(waiting & {line["pid"] for line in lines if line["event"] == "WORKER_BUILT"})

    def strike(self, how: signal.Signals, which: float) -> tuple[float, psutil.Process] | None:
        """Send a signal to a rank, the one that lies at `which` (0 … 1) among them.

        Returns:
            When, and to whom; None if there is no rank just now.
        """
        ranks = list(self.trails.look().ranks().values())
        if not ranks:
            return None
        victim = ranks[int(which * len(ranks))]
        struck = time.monotonic()
        victim.send_signal(how)
        return struck, victim

    def recovery(self, struck: float, deadline: float) -> Recovery:
        """Wait until training is ahead of where it was at time `struck`."""
        return self.wait(
            lambda: recovery(completions(self.trails.steps), struck), "a new iteration after a fault", deadline
        )


@contextmanager
def training(root: Path, name: str, side: Side) -> Iterator[Training]:
    """Start a training in a folder of its own, and end it."""
    command = {"OMP_NUM_THREADS": "1", **side.environment}
    with _report.started(root, name, side.command, **command) as (process, folder):
        yield Training(side, lambda: process.poll() is not None, folder)


def recoveries(
    root: Path, name: str, side: Side, *, faults: int, seed: int, how: signal.Signals = signal.SIGKILL
) -> Iterator[Recovery]:
    """Strike a training several times, each time when it is steady again.

    Args:
        root: where its folder is made.
        name: of the folder.
        side: what is trained with.
        faults: how many.
        seed: chooses ranks and moments.
        how: the signal; a stopped rank is killed when training has gone on without it.

    Raises:
        TimeoutError: it has not gone on, or not become steady again, within two minutes.
    """
    chance = random.Random(seed)
    with training(root, name, side) as one:
        for _ in range(faults):
            one.steady()
            time.sleep(1 + chance.random())  # a spare that has just begun finishes building, and is known as ready
            struck = one.strike(how, chance.random())
            assert struck is not None, f"{side.name}: expected ranks to strike, since training was steady"
            when, victim = struck
            try:
                yield one.recovery(when, deadline=120)
            finally:
                if how == signal.SIGSTOP and victim.is_running():
                    victim.kill()
