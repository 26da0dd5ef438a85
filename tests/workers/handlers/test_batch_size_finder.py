"""The largest batch that fits is found by running out of memory, really; nothing else changes."""

from typing import Any

import pytest
import torch

from tests.workers.handlers.regression import regression
from workers import Engine, Events, Worker
from workers.handlers import BatchSizeFinder
from workers.handlers.batch_size_finder import is_out_of_memory

ROOM = 1 << 62  # bytes, more than any machine has; a step that asks for as much is refused them


def hungry(made: Any, fitting: int) -> list[int]:
    """Have steps with more samples than that run out of memory; the sizes that were tried."""
    step, tried = made.trainer.process_function, []

    def wants_memory(engine: Engine, batch: Any) -> Any:
        size = len(batch[0])
        if not tried or tried[-1] != size:
            tried.append(size)
        if size > fitting:
            torch.empty(ROOM, dtype=torch.uint8)
        return step(engine, batch)

    made.trainer.process_function = wants_memory
    return tried


@pytest.mark.parametrize(
    ("fitting", "given", "size", "tried"),
    [
        (50, {}, 32, [8, 16, 32, 64]),
        (3, {"start": 32}, 2, [32, 16, 8, 4, 2, 4]),
        (10**9, {"largest": 100}, 100, [8, 16, 32, 64, 100]),
        (5, {"start": 40, "grow": False}, 5, [40, 20, 10, 5]),
    ],
)
def test_sizes_are_doubled_while_they_fit_and_halved_when_they_do_not(
    fitting: int, given: Any, size: int, tried: list[int]
) -> None:
    made = regression(worker=Worker())
    seen = hungry(made, max(fitting, 8))
    if fitting < 8:
        seen = hungry(made, fitting)
    finder = BatchSizeFinder(**given)
    finder.attach(made.trainer)
    made.trainer.add_event_handler(Events.STARTED, made.trainer.terminate)
    made.train()
    assert (finder.size, seen) == (size, tried)
    assert made.trainer.state.metrics["fitting_batch_size"] == size


def test_what_was_tried_is_undone_to_the_bit() -> None:
    calm = regression(worker=Worker()).train(2).numbers
    made = regression(worker=Worker())
    hungry(made, 20)
    BatchSizeFinder().attach(made.trainer)
    assert made.train(2).numbers == calm


def test_if_nothing_fits_it_says_so() -> None:
    made = regression()
    hungry(made, 0)
    BatchSizeFinder().attach(made.trainer, state=made.state)
    with pytest.raises(MemoryError, match="expected a step with one sample to fit"):
        made.train()


def test_other_exceptions_are_the_programs() -> None:
    trainer = Engine(lambda engine, batch: 1 / 0)
    BatchSizeFinder().attach(trainer, state={})
    with pytest.raises(ZeroDivisionError):
        trainer.run([torch.zeros(2)])


def test_batches_are_made_longer_whatever_they_are() -> None:
    seen: list[Any] = []
    trainer = Engine(lambda engine, batch: seen.append(batch))
    BatchSizeFinder(start=5, grow=False).attach(trainer, state={})
    trainer.add_event_handler(Events.STARTED, trainer.terminate)
    trainer.run([{"x": torch.tensor([1, 2, 3]), "more": [(torch.tensor([4, 5, 6]), "text")], "n": torch.tensor(7)}])
    assert seen[0]["x"].tolist() == [1, 2, 3, 1, 2]
    assert seen[0]["more"][0][0].tolist() == [4, 5, 6, 4, 5]
    assert (seen[0]["more"][0][1], seen[0]["n"].item()) == ("text", 7)
    with pytest.raises(ValueError, match=r"expected batches that hold tensors with samples .* received str"):
        trainer.run(["text"], resume_from_iteration=0)


def test_what_says_that_memory_was_not_enough_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(ROOM, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError("out of memory"))
