"""A run that goes on in the middle of one that was left: nothing that was told is told again, nothing is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from workers.engine import Engine
from workers.events import Event, Events

EVENTS = (
    Events.STARTED, Events.EPOCH_STARTED, Events.ITERATION_COMPLETED, Events.TERMINATE_SINGLE_EPOCH,
    Events.EPOCH_COMPLETED, Events.TERMINATE, Events.INTERRUPT, Events.COMPLETED,
)  # fmt: skip
Ask = Callable[[Engine], None]


class Batches:
    """Three batches that can be told where to go on."""

    def __init__(self) -> None:
        self.next = 0

    def __len__(self) -> int:
        return 3

    def seek(self, iteration: int) -> None:
        self.next = iteration

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.next % 3, 3))


def told_in(engine: Engine, asked: dict[tuple[str, int], Ask]) -> list[Any]:
    """Write down what is fired, with the state at each; where that is said, something is asked of the engine."""
    told: list[Any] = []

    def tell(engine: Engine, event: Event) -> None:
        key = event.key, engine.state.counters[event]
        if (ask := asked.get(key)) is not None:
            ask(engine)
        told.append((key, engine.state_dict(), dict(engine.requests)))

    for event in EVENTS:
        engine.add_event_handler(event, tell, event)
    return told


REQUESTS: dict[str, dict[tuple[str, int], Ask]] = {
    "nothing": {},
    "the end at an epoch's last iteration": {("ITERATION_COMPLETED", 3): Engine.terminate},
    "the end in an epoch": {("ITERATION_COMPLETED", 4): Engine.terminate},
    "the end between epochs": {("EPOCH_COMPLETED", 1): Engine.terminate},
    "a pause at an epoch's last iteration": {("ITERATION_COMPLETED", 3): Engine.interrupt},
    "the end of an epoch": {("ITERATION_COMPLETED", 1): Engine.terminate_epoch},
    "the end of an epoch at its begin": {("EPOCH_STARTED", 2): Engine.terminate_epoch},
    "the end of an epoch at its last iteration": {("ITERATION_COMPLETED", 3): Engine.terminate_epoch},
}


@pytest.mark.parametrize("asked", REQUESTS.values(), ids=REQUESTS)
def test_a_run_that_is_rewound_to_any_event_tells_what_followed_it(asked: dict[tuple[str, int], Ask]) -> None:
    first = Engine(lambda engine, batch: batch)
    whole = told_in(first, asked)
    first.run(Batches(), max_epochs=2)
    assert len(whole) > 5
    for number, ((event, _), state, requests) in enumerate(whole):
        again = Engine(lambda engine, batch: batch)
        told = told_in(again, asked)
        again.load_state_dict(state)

        def go_on(engine: Engine, requests: dict[str, bool] = requests) -> None:
            engine.requests = requests

        again.rewind(event, go_on)
        again.run(Batches(), max_epochs=2)
        assert [key for key, _, _ in told] == [key for key, _, _ in whole[number + 1 :]], f"after {whole[number][0]}"
