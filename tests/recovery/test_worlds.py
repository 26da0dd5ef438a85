"""Where a lost rank is not replaced, fewer go on, and more again when there is room: every sample counts once."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from orchestrator import Orchestrator
from tests.journeys.stochastic import SAMPLES
from tests.process_ranks import ProcessGroup
from tests.recovery.jobs import PER_EPOCH, Ended, Job, checkpoints_hold, kill, run
from tests.recovery.program import Fault
from tests.waiting import wait_until


class Room(ProcessGroup):
    """Workers on a machine that has room for some."""

    def have(self, places: int) -> None:
        """So many may live from now on; who waits comes in."""
        type(self).places = places
        self._let_in()


def wait_for_reserves(run: Orchestrator, number: int) -> None:
    """Wait until so many workers have built and are free; the loop goes on meanwhile."""
    driver = run._run
    assert driver is not None

    def ready() -> bool:
        driver.loop.pump(timeout=0.05)
        return len(driver.ranks.spares) >= number

    wait_until(ready, timeout=120, what=f"{number} workers are ready", interval=0)


def worlds(ended: Ended) -> list[int]:
    """The world sizes of the iterations that count, one after the other."""
    return [size for size, _ in itertools.groupby(len(ranks) for ranks in ended.consumed.values())]


def counts_once(ended: Ended, epochs: int) -> None:
    """Every sample was consumed once in each epoch, by whatever ranks there were, and the driver knows."""
    consumed = ended.consumed
    assert sorted(consumed) == list(range(1, epochs * PER_EPOCH + 1))
    for epoch in range(epochs):
        parts = [consumed[epoch * PER_EPOCH + step].values() for step in range(1, PER_EPOCH + 1)]
        assert sorted(index for ranks in parts for part in ranks for index in part) == list(range(SAMPLES))
    assert ended.samples == epochs * SAMPLES


def losses_count(ended: Ended) -> None:
    """The loss of each epoch is the mean over all samples consumed in it, also by ranks that are lost since."""
    for epoch, told in enumerate(ended.metrics):
        steps = range(epoch * PER_EPOCH + 1, (epoch + 1) * PER_EPOCH + 1)
        total = sum(
            loss * len(ended.consumed[step][rank]) for step in steps for rank, loss in ended.losses[step].items()
        )
        assert told["loss"] == pytest.approx(total / SAMPLES, rel=1e-5)


def test_fewer_ranks_go_on_and_a_new_worker_makes_them_whole_again(tmp_path: Path) -> None:
    fault = Fault(where="forward", iteration=11, rank=1)
    job = Job(
        workers={"count": 3, "min": 2},
        faults=[fault],
        epochs=4,
        at_gate={3: lambda run, group: wait_for_reserves(run, 1) if run._run.ranks.world_size < 3 else None},  # type: ignore[union-attr]
    )
    ended = run(job, tmp_path / "job")
    assert ended.error is None
    assert (ended.fired, ended.epochs) == ([str(fault)], [1, 2, 3, 4])
    assert [line["rank"] for line in ended.told("WORKER_LOST")] == [1]
    assert [line["world_size"] for line in ended.told("RECOVERED")] == [2]
    assert [(line["before"], line["after"]) for line in ended.told("WORLD_RESIZED")] == [(3, 2), (2, 3)]
    assert worlds(ended) == [3, 2, 3]
    counts_once(ended, 4)
    losses_count(ended)
    checkpoints_hold(ended, 4 * PER_EPOCH)


def test_four_three_five_and_two_ranks_share_one_epoch_of_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Room, "places", 4)
    killed: list[int] = []

    def act(run: Orchestrator, group: ProcessGroup, iteration: int) -> None:
        assert isinstance(group, Room)
        if iteration == 2:
            type(group).places = 3
            killed.append(1)
            kill(1)(run, group)
        elif iteration == 4:
            group.have(5)
            wait_for_reserves(run, 2)
        elif iteration == 6:
            type(group).places = 2
            killed.extend([0, 2, 4])
            kill(0, 2, 4)(run, group)

    job = Job(workers={"count": 4, "min": 2, "max": 5}, epochs=1, at_iteration=act, blocking=True, group=Room)
    ended = run(job, tmp_path / "job")
    assert ended.error is None
    assert sorted(line["rank"] for line in ended.told("WORKER_LOST")) == sorted(killed)
    assert worlds(ended) == [4, 3, 5, 2]
    counts_once(ended, 1)
    losses_count(ended)
    checkpoints_hold(ended, PER_EPOCH)
