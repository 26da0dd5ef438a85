"""Models that are sharded: a lost rank takes its part along, so all build anew and take up the newest checkpoint."""

from __future__ import annotations

from typing import Any

import pytest

from tests.recovery.jobs import Job, until_committed
from tests.recovery.program import Fault

SAVED = {2: until_committed}  # the checkpoint of the first epoch, before the second one is begun


@pytest.mark.parametrize(("world_size", "where"), [(2, "forward"), (3, "step")])
def test_a_lost_rank_is_replaced_and_all_go_back_to_the_checkpoint(survives: Any, world_size: int, where: str) -> None:
    fault = Fault(where=where, iteration=19, rank=1)
    job = Job(workers={"count": world_size, "spares": 1}, faults=[fault], at_gate=SAVED, strategy="fsdp")
    ended = survives(job, fired=[str(fault)], lost=[1])
    assert [line["snapshot"] for line in ended.told("RECOVERED")] == [None]
