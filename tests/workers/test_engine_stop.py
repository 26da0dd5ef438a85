"""Ways out of a run: terminate, terminate_epoch, interrupt, exceptions, the boundary between iterations."""

import logging
import threading

import pytest

from workers.engine import Engine
from workers.errors import FastForwardWarning
from workers.events import Events

STOPS = (Events.EPOCH_COMPLETED, Events.TERMINATE, Events.TERMINATE_SINGLE_EPOCH, Events.INTERRUPT)
STOPS += (Events.EXCEPTION_RAISED, Events.COMPLETED, Events.STARTED, Events.RESUMED, Events.EPOCH_STARTED)


@pytest.fixture
def seen():
    return []


@pytest.fixture
def engine(seen):
    return Engine(lambda engine, batch: seen.append(batch))


@pytest.fixture
def fired(engine):
    log = []
    for event in STOPS:
        engine.add_event_handler(event, lambda *, event=event: log.append(event.key))
    return log


def at(engine, event, call):
    engine.add_event_handler(event, lambda: call())


def test_terminate_finishes_the_iteration_in_progress(engine, seen, fired):
    at(engine, Events.ITERATION_STARTED(once=3), engine.terminate)
    engine.run([1, 2], max_epochs=3)
    assert seen == [1, 2, 1]
    assert fired[-3:] == ["EPOCH_STARTED", "TERMINATE", "COMPLETED"]


def test_terminate_at_the_end_of_an_epoch_completes_it(engine, fired):
    at(engine, Events.ITERATION_COMPLETED(once=2), engine.terminate)
    engine.run([1, 2], max_epochs=3)
    assert fired == ["STARTED", "EPOCH_STARTED", "EPOCH_COMPLETED", "TERMINATE", "COMPLETED"]


def test_completed_may_be_left_out(engine, fired):
    at(engine, Events.ITERATION_STARTED(once=1), lambda: engine.terminate(skip_completed=True))
    engine.run([1, 2])
    assert fired == ["STARTED", "EPOCH_STARTED", "TERMINATE"]


@pytest.mark.parametrize(
    ("event", "left"),
    [
        (Events.STARTED, ["STARTED", "TERMINATE", "COMPLETED"]),
        (Events.EPOCH_STARTED, ["STARTED", "EPOCH_STARTED", "TERMINATE", "COMPLETED"]),
    ],
)
def test_terminate_before_the_first_iteration_runs_none(engine, seen, fired, event, left):
    at(engine, event, engine.terminate)
    engine.run([1, 2])
    assert seen == []
    assert fired == left


def test_a_terminated_run_goes_on_at_its_next_iteration(engine, seen, fired):
    epochs = []
    engine.add_event_handler(Events.ITERATION_STARTED, lambda e: epochs.append(e.state.epoch))
    handle = engine.add_event_handler(Events.ITERATION_COMPLETED(once=7), engine.terminate)
    data = list("abcde")
    engine.run(data, max_epochs=3)
    handle.remove()
    fired.clear()
    with pytest.warns(FastForwardWarning, match=r"2 batches were read and thrown away in 0\.0 s"):
        engine.run(data)
    assert "".join(seen) == "abcde" * 3
    assert epochs == [1] * 5 + [2] * 5 + [3] * 5
    assert fired == ["RESUMED", "EPOCH_COMPLETED", "EPOCH_STARTED", "EPOCH_COMPLETED", "COMPLETED"]


def test_terminate_epoch_leaves_out_the_rest_of_the_epoch(engine, seen, fired):
    at(engine, Events.ITERATION_COMPLETED(once=2), engine.terminate_epoch)
    places = []
    for event in (Events.TERMINATE_SINGLE_EPOCH, Events.EPOCH_COMPLETED):
        engine.add_event_handler(event, lambda e: places.append(e.state.iteration))
    engine.run("abc", max_epochs=2)
    assert "".join(seen) == "ababc"
    assert fired[:3] == ["STARTED", "EPOCH_STARTED", "TERMINATE_SINGLE_EPOCH"]
    assert fired[3:] == ["EPOCH_COMPLETED", "EPOCH_STARTED", "EPOCH_COMPLETED", "COMPLETED"]
    assert places == [2, 3, 6]
    assert engine.timers["epoch loop"]["iteration loop"]["get batch"].count == 5


@pytest.mark.parametrize("name", ["terminate", "terminate_epoch"])
def test_a_request_can_itself_be_a_handler_and_leaves_nothing_out(engine, fired, name):
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), getattr(engine, name))
    engine.run("ab", max_epochs=2)
    assert fired[-1] == "COMPLETED"
    assert fired.count("EPOCH_COMPLETED") == (2 if name == "terminate_epoch" else 0)


def test_epoch_completed_may_be_left_out_and_the_epoch_counts(engine, seen, fired):
    at(engine, Events.ITERATION_COMPLETED(once=1), lambda: engine.terminate_epoch(skip_epoch_completed=True))
    engine.run("ab", max_epochs=2)
    assert "".join(seen) == "aab"
    assert fired[2:] == ["TERMINATE_SINGLE_EPOCH", "EPOCH_STARTED", "EPOCH_COMPLETED", "COMPLETED"]
    assert (engine.state.epoch, engine.state.counters[Events.EPOCH_COMPLETED]) == (2, 2)


def test_terminate_epoch_as_it_starts_runs_none_of_it(engine, seen):
    at(engine, Events.EPOCH_STARTED(once=1), engine.terminate_epoch)
    engine.run("ab", max_epochs=2)
    assert "".join(seen) == "ab"


def test_terminate_epoch_between_epochs_ends_none(engine, seen):
    at(engine, Events.EPOCH_COMPLETED(once=1), engine.terminate_epoch)
    engine.run("ab", max_epochs=2)
    assert "".join(seen) == "abab"


def test_terminate_epoch_needs_to_know_where_the_epoch_ends(engine):
    at(engine, Events.ITERATION_COMPLETED, engine.terminate_epoch)
    with pytest.raises(RuntimeError, match=r"terminate_epoch\(\): .*give run\(epoch_length=...\)"):
        engine.run(iter("ab"))


def test_interrupt_leaves_the_run_and_the_next_one_goes_on_with_the_same_iterator(engine, seen, fired):
    handle = engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.interrupt)
    engine.run(list("abc"), max_epochs=2)
    assert fired == ["STARTED", "EPOCH_STARTED", "INTERRUPT"]
    handle.remove()
    engine.run()
    assert "".join(seen) == "abcabc"
    assert fired[3:] == ["RESUMED", "EPOCH_COMPLETED", "EPOCH_STARTED", "EPOCH_COMPLETED", "COMPLETED"]


def test_interrupt_at_the_end_of_an_epoch_completes_it_once(engine, fired):
    at(engine, Events.ITERATION_COMPLETED(once=2), engine.interrupt)
    engine.run("ab", max_epochs=2)
    engine.run()
    assert fired.count("EPOCH_COMPLETED") == fired.count("EPOCH_STARTED") == 2


def test_an_exception_is_told_to_all_handlers_and_raised_again(engine, fired):
    problem = ValueError("bad batch")
    told = []

    def step(engine, batch):
        raise problem

    engine.process_function = step
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: told.append(error))
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error, word: told.append(word), "word")
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda engine: told.append(engine))
    with pytest.raises(ValueError, match="bad batch") as raised:
        engine.run([1])
    assert told == [problem, "word", engine]
    assert raised.value is problem
    assert raised.traceback[-1].name == "step"
    assert fired == ["STARTED", "EPOCH_STARTED", "EXCEPTION_RAISED"]


def test_a_handler_that_raises_does_not_keep_an_exception_from_the_others(engine, fired, caplog):
    problem = KeyError("first")
    for other in (problem, OSError("second")):
        engine.add_event_handler(Events.EXCEPTION_RAISED, raiser(other))
    at(engine, Events.EXCEPTION_RAISED, lambda: fired.append("told"))
    engine.process_function = lambda engine, batch: raiser(problem)(engine, None)
    with caplog.at_level(logging.ERROR), pytest.raises(KeyError) as raised:
        engine.run([1])
    assert raised.value is problem
    assert fired[-1] == "told"
    assert [record.exc_info[1].args for record in caplog.records] == [("second",)]


def raiser(problem):
    def handler(engine, error):
        raise problem

    return handler


def test_a_handler_may_suppress_the_exception(engine, fired):
    at(engine, Events.EXCEPTION_RAISED, engine.suppress)
    engine.process_function = lambda engine, batch: 1 / 0
    assert engine.run([1]) is engine.state
    assert fired == ["STARTED", "EPOCH_STARTED", "EXCEPTION_RAISED"]


@pytest.mark.parametrize("event", [Events.EPOCH_COMPLETED, Events.COMPLETED, Events.GET_BATCH_STARTED])
def test_exceptions_of_handlers_are_told_too(engine, event):
    told = []
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: told.append(error))
    at(engine, event, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError) as raised:
        engine.run([1])
    assert told == [raised.value]


@pytest.mark.filterwarnings("ignore::workers.errors.FastForwardWarning")
def test_the_next_run_works_after_an_exception(engine, seen, fired):
    handle = engine.add_event_handler(Events.ITERATION_STARTED(once=4), lambda: 1 / 0)
    data = list("abc")
    with pytest.raises(ZeroDivisionError):
        engine.run(data, max_epochs=3)
    handle.remove()
    fired.clear()
    engine.run(data)
    assert "".join(seen) == "abc" + "bc" + "abc"
    assert fired == ["RESUMED", "EPOCH_COMPLETED", "EPOCH_STARTED", "EPOCH_COMPLETED", "COMPLETED"]


def test_a_keyboard_interrupt_is_an_interrupt_and_raised_again(engine, fired):
    def step(engine, batch):
        raise KeyboardInterrupt

    engine.process_function = step
    with pytest.raises(KeyboardInterrupt):
        engine.run([1])
    assert fired == ["STARTED", "EPOCH_STARTED", "INTERRUPT"]


def test_what_is_no_exception_passes_through_unseen(engine, fired):
    def step(engine, batch):
        raise SystemExit(3)

    engine.process_function = step
    with pytest.raises(SystemExit):
        engine.run([1])
    assert fired == ["STARTED", "EPOCH_STARTED"]


def test_the_boundary_is_called_between_iterations_before_the_batch_is_fetched(engine, seen):
    places = []
    engine.set_boundary(lambda e: places.append((e.state.iteration, e.announced, len(seen))))
    at(engine, Events.ITERATION_COMPLETED(once=4), lambda: engine.set_boundary(None))
    engine.run("ab", max_epochs=3)
    assert places == [(0, 1, 0), (1, 2, 1), (2, 3, 2), (3, 4, 3)]
    assert engine.announced == 6


def test_a_boundary_may_end_the_run_before_the_iteration_starts(engine, seen, fired):
    fetched = []
    engine.add_event_handler(Events.GET_BATCH_STARTED, lambda e: fetched.append(e.announced))
    engine.set_boundary(lambda e: e.terminate() if e.announced == 3 else None)
    engine.run("abc", max_epochs=2)
    assert "".join(seen) == "ab"
    assert fetched == [1, 2]
    assert (engine.state.iteration, engine.announced) == (2, 3)
    assert fired == ["STARTED", "EPOCH_STARTED", "TERMINATE", "COMPLETED"]


def test_requests_come_from_any_thread():
    reached, go_on = threading.Event(), threading.Event()
    places = []

    def step(engine, batch):
        if batch == 3:
            reached.set()
            assert go_on.wait(30)

    engine = Engine(step)
    trainer = threading.Thread(target=lambda: engine.run(range(1, 100)))
    trainer.start()
    assert reached.wait(30)

    def boundary(engine):
        places.append(engine.announced)
        engine.terminate()

    engine.set_boundary(boundary)
    go_on.set()
    trainer.join(30)
    assert places == [4]
    assert engine.state.iteration == 3


def test_terminate_epoch_does_not_go_beyond_the_goal():
    engine = Engine(lambda engine, batch: batch)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=6), engine.terminate_epoch)
    assert engine.run([1] * 5, max_iters=7).iteration == 7
    assert engine.state.counters["EPOCH_COMPLETED"] == 1
    with pytest.warns(FastForwardWarning, match="2 batches"):  # in the middle of an epoch, then
        assert engine.run(engine.state.dataloader, max_iters=12).iteration == 12
