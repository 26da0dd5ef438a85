"""Goals, epoch lengths, data: what `run` accepts and how far it goes."""

import inspect
import itertools
import re

import pytest

from workers.engine import Engine
from workers.errors import DataLoaderEmptyError
from workers.events import Events


@pytest.fixture
def seen():
    return []


@pytest.fixture
def engine(seen):
    return Engine(lambda engine, batch: seen.append(batch))


class Unsized:
    """Can be read again and again, but has no length."""

    def __init__(self, n):
        self.n = n
        self.opened = 0

    def __iter__(self):
        self.opened += 1
        return iter(range(self.n))


def test_one_epoch_is_the_default(engine, seen):
    assert engine.run([1, 2]) is engine.state
    assert seen == [1, 2]
    assert (engine.state.epoch_length, engine.state.max_epochs, engine.state.max_iters) == (2, 1, None)


def test_arguments_stand_in_the_order_of_ignite(engine):
    ours = list(inspect.signature(engine.run).parameters)
    assert ours[:4] == ["data", "max_epochs", "max_iters", "epoch_length"]  # as in pytorch-ignite 0.5.5


def test_every_epoch_reads_the_data_from_its_beginning(engine, seen):
    engine.run(Unsized(2), max_epochs=3)
    assert seen == [0, 1] * 3
    assert engine.state.epoch_length == 2


def test_an_unknown_length_is_learned_without_a_stop_event(engine, seen):
    stops = []
    engine.add_event_handler(Events.DATALOADER_STOP_ITERATION, lambda: stops.append(1))
    numbers = []
    engine.add_event_handler(Events.GET_BATCH_STARTED, lambda e: numbers.append(e.announced))
    engine.run(Unsized(2), max_epochs=2)
    assert stops == []
    assert numbers == [1, 2, 3, 3, 4]


def test_with_an_epoch_length_the_iterator_lives_on(engine, seen):
    data = Unsized(5)
    engine.run(data, max_epochs=2, epoch_length=2)
    assert seen == [0, 1, 2, 3]
    assert data.opened == 1


def test_data_that_ends_within_an_epoch_is_restarted(engine, seen):
    stops = []
    engine.add_event_handler(Events.DATALOADER_STOP_ITERATION, lambda e: stops.append(e.announced))
    engine.run([1, 2, 3], max_epochs=2, epoch_length=4)
    assert seen == [1, 2, 3, 1, 2, 3, 1, 2]
    assert stops == [4, 7]


def test_endless_data_needs_an_epoch_length(engine, seen):
    for data in (itertools.count(), itertools.cycle([1]), itertools.repeat(1)):
        with pytest.raises(ValueError, match=r"data with an end, .* received .* without one; give epoch"):
            engine.run(data)
    engine.run(itertools.repeat(7, 2))
    engine.run(itertools.count(), epoch_length=2, max_epochs=2)
    assert seen == [7, 7, 0, 1, 2, 3]


def test_max_iters_counts_over_epochs(engine, seen):
    epochs = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: epochs.append(e.state.iteration))
    engine.run([1, 2, 3], max_iters=7)
    assert seen == [1, 2, 3, 1, 2, 3, 1]
    assert epochs == [3, 6]
    assert engine.state.counters[Events.COMPLETED] == 1
    assert engine.state.counters[Events.TERMINATE] == 0


def test_max_iters_needs_no_length(engine, seen):
    engine.run(itertools.count(), max_iters=3)
    assert seen == [0, 1, 2]


def test_max_iters_at_the_end_of_an_epoch_completes_it(engine):
    engine.run([1, 2], max_iters=4)
    assert engine.state.counters[Events.EPOCH_COMPLETED] == 2


def test_an_epoch_length_of_zero_has_events_but_no_iterations(engine, seen):
    fired = []
    for event in Events:
        engine.add_event_handler(event, lambda *, event=event: fired.append(event.key))
    for data in (None, [], [1, 2]):
        fired.clear()
        engine.run(data, epoch_length=0, max_epochs=2)
        epochs = ["EPOCH_STARTED", "EPOCH_COMPLETED"] * 2
        assert fired == ["STARTED", *epochs, "COMPLETED"]
    assert seen == []


@pytest.mark.parametrize("data", [[], (), Unsized(0), iter([])])
def test_data_without_batches_is_an_error(engine, data):
    with pytest.raises(DataLoaderEmptyError):
        engine.run(data)


def test_data_that_can_not_be_read_twice_is_an_error_where_it_would_be(engine, seen):
    with pytest.raises(DataLoaderEmptyError, match=r"expected batch 4, .* an iterator can't be read twice"):
        engine.run(iter([1, 2, 3]), epoch_length=2, max_epochs=2)
    assert seen == [1, 2, 3]


def test_the_data_may_be_replaced_when_it_ends(engine, seen):
    engine.add_event_handler(Events.DATALOADER_STOP_ITERATION, lambda e: e.set_data(iter("xyz")))
    engine.run(iter("ab"), epoch_length=4)
    assert "".join(seen) == "abxy"


def test_the_data_may_be_replaced_at_any_time(engine, seen):
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda e: e.set_data("xyz"))
    engine.run("abc", max_epochs=2)
    assert "".join(seen) == "abx" + "xyz"
    assert engine.state.dataloader == "xyz"


def test_a_run_may_end_where_the_data_ends(engine, seen):
    engine.add_event_handler(Events.DATALOADER_STOP_ITERATION, lambda e: e.terminate())
    engine.run(iter("ab"), epoch_length=4)
    assert "".join(seen) == "ab"
    assert engine.state.counters[Events.COMPLETED] == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_epochs": 2, "max_iters": 3}, ValueError, "run(max_epochs=2, max_iters=3): expected one of them"),
        ({"max_epochs": 0}, ValueError, "run(max_epochs=...): expected a whole number from 1, received 0"),
        ({"max_epochs": 1.5}, TypeError, "run(max_epochs=...): expected a whole number from 1, received 1.5 (float)"),
        ({"max_iters": "3"}, TypeError, "run(max_iters=...): expected a whole number from 1, received '3' (str)"),
        ({"epoch_length": -1}, ValueError, "run(epoch_length=...): expected a whole number from 0, received -1"),
        ({"epoch_length": True}, TypeError, "run(epoch_length=...): expected a whole number from 0, received True"),
        ({"max_iters": 3, "epoch_length": 0}, ValueError, "expected epochs with iterations"),
        ({"resume_from_epoch": -1}, ValueError, "run(resume_from_epoch=...): expected a whole number from 0"),
        ({"resume_from_iteration": 9}, ValueError, "run(max_epochs=1): expected a goal beyond iteration 9"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(engine, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        engine.run([1, 2], **arguments)
    assert engine.state.counters[Events.STARTED] == 0


def test_no_data_needs_an_epoch_length(engine):
    with pytest.raises(ValueError, match=r"run\(data=None\): expected epoch_length"):
        engine.run(None)


def test_a_process_function_can_be_called():
    with pytest.raises(TypeError, match=r"expected a function f\(engine, batch\), received 3"):
        Engine(3)


def test_an_engine_does_not_run_within_itself(engine):
    engine.add_event_handler(Events.STARTED, lambda e: e.run([1]))
    with pytest.raises(RuntimeError, match="received one that does; use another inside a handler"):
        engine.run([1])


def test_another_run_starts_over(engine, seen):
    engine.run([1, 2], max_epochs=2)
    engine.run([3], max_epochs=2)
    assert seen == [1, 2, 1, 2, 3, 3]
    assert engine.state.counters[Events.STARTED] == 2
    assert engine.state.epoch_length == 1


def test_a_completed_run_goes_on_to_a_farther_goal(engine, seen):
    data = [1, 2]
    engine.run(data, max_epochs=1)
    engine.run(data, max_epochs=2)
    assert (engine.state.iteration, engine.state.epoch) == (4, 2)
    engine.run(max_epochs=3)
    assert seen == [1, 2] * 3
    assert engine.state.counters[Events.RESUMED] == 2
    engine.run([3, 4], max_epochs=4)
    assert engine.state.counters[Events.STARTED] == 2


def test_attributes_stay_over_runs(engine):
    engine.run([1])
    engine.state.best = 3
    engine.run([1])
    assert engine.state.best == 3
