"""A process that loads for a rank dies: others go on with the very batch that it owed, and no rank is lost."""

from __future__ import annotations

from typing import Any

import pytest

from tests.recovery.jobs import Job
from tests.recovery.program import Fault


@pytest.mark.parametrize(("where", "ranks"), [("forward", 2), ("step", 1)])
def test_a_loader_process_is_killed_while_its_rank_trains(survives: Any, where: str, ranks: int) -> None:
    fault = Fault(where=where, iteration=11, rank=ranks - 1, how="loader")
    job = Job(workers={"count": ranks}, config={"loader_workers": 2}, faults=[fault])
    ended = survives(job, fired=[str(fault)], lost=[])
    (told,) = ended.told("MENDED")
    assert told["rank"] == fault.rank
    assert "was ended by SIGKILL; others go on with batch" in told["text"]
    assert ended.told("RECOVERED") == []
