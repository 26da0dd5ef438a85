"""Handlers for ranks: checked and pickled when they are registered."""

import pickle
import threading
from typing import Any

import pytest

from orchestrator.bus import EventBus
from orchestrator.errors import SpecError
from orchestrator.shipping import ship
from workers.events import Events
from workers.parcels import RankHandler


def tell(engine: object, *words: str, loud: bool = False) -> None: ...


def shipped(handler: Any = tell, rank: Any = 0, args: tuple[Any, ...] = (), **kwargs: Any) -> RankHandler:
    bus = EventBus("evaluator", None)
    return ship(bus, Events.COMPLETED, handler, (args, kwargs), rank=rank, world_size=4)


def test_a_handler_travels_with_its_arguments() -> None:
    handler = shipped(args=("a", "b"), loud=True)
    assert (handler.engine, handler.event) == ("evaluator", Events.COMPLETED)
    function, args, kwargs = pickle.loads(handler.pickled)
    assert (function.__name__, args, kwargs) == ("tell", ("a", "b"), {"loud": True})


@pytest.mark.parametrize(
    ("rank", "where"), [("all", "all"), ("local_rank_0", "local_rank_0"), (3, 3), ([0, 2], (0, 2)), ((), ())]
)
def test_it_says_on_which_ranks_it_runs(rank: Any, where: object) -> None:
    assert shipped(rank=rank).where == where


@pytest.mark.parametrize(
    ("rank", "wrong"),
    [
        (4, "4 (int)"),
        (-1, "-1 (int)"),
        ([0, 9], "9 (int)"),
        ("some", "'some' (str)"),
        (True, "True (bool)"),
        (1.0, "1.0 (float)"),
    ],
)
def test_ranks_that_do_not_exist_are_refused(rank: Any, wrong: str) -> None:
    with pytest.raises(SpecError) as caught:
        shipped(rank=rank)
    assert str(caught.value) == (
        f"orchestrator.on(rank={rank!r}): expected ranks from 0 to 3, or 'all' or 'local_rank_0', received {wrong}; "
        "write for example rank=0 or rank='all'"
    )


def test_a_handler_that_can_not_be_pickled_is_named() -> None:
    lock = threading.Lock()

    def guarded(engine: object) -> object:
        return lock

    with pytest.raises(SpecError) as caught:
        shipped(guarded, rank="all")
    assert str(caught.value) == (
        "orchestrator.on(rank='all'): expected something that can be pickled and sent to the ranks, received "
        "test_a_handler_that_can_not_be_pickled_is_named.<locals>.guarded: TypeError: cannot pickle '_thread.lock' "
        "object; make what it refers to inside the function, or pass plain values"
    )


def test_a_handler_that_can_not_be_called_so_is_refused() -> None:
    with pytest.raises(ValueError, match="quiet"):
        shipped(quiet=True)


def test_a_handler_for_ranks_asks_nothing_of_the_driver() -> None:
    bus = EventBus("trainer", None)
    ship(bus, Events.EPOCH_COMPLETED, tell, ((), {}), rank=0, world_size=1)
    assert (bus.gates(), bus.listens(Events.EPOCH_COMPLETED)) == (None, False)
