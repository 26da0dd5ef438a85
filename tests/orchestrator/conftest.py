"""A run of scripted ranks for the tests of the driver's loop."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.bus import EventBus
from orchestrator.checkpoints.registry import Registry
from orchestrator.journal import Journal, read_journal
from orchestrator.limits import Limits
from orchestrator.run import Run
from orchestrator.settings import Settings
from orchestrator.spec import ClusterSpec, RecoverySpec, WorkersSpec
from tests.orchestrator.fake_group import FakeGroup
from workers.events import Events
from workers.locations import storage_at
from workers.orders import Build

MakeRun = Callable[..., Run]


def lines_of(run: Run) -> list[dict[str, Any]]:
    """What the run's journal tells."""
    return list(read_journal(run.journal._storage.locate("journal.jsonl")))


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[MakeRun]:
    """Make the run of a group, with buses for its two engines and perhaps one handler of the trainer's events."""
    home = storage_at(tmp_path)
    journal = Journal(home)
    journal.start()

    def make(group: FakeGroup, handler: Any = None, event: Any = Events.EPOCH_COMPLETED, *, spares: int = 0) -> Run:
        buses = {name: EventBus(name, "the orchestrator") for name in ("trainer", "evaluator")}
        if handler is not None:
            buses["trainer"].listen(event, handler)
        return Run(
            group,
            buses,
            journal,
            Registry(home.child("checkpoints")),
            Settings(
                run="run",
                program="m:build",
                program_name="m:build",
                config={},
                workers=WorkersSpec(count=group.size - spares, spares=spares),
                cluster=ClusterSpec(),
                recovery=RecoverySpec(),
                seed=0,
                storage=str(tmp_path),
                roots=(),
            ),
            build=lambda membership: Build(program="m:build", config={}, seed=0, membership=membership),
            limits=Limits(max_epochs=5, start_timeout=0.05),
        )

    yield make
    journal.close()
