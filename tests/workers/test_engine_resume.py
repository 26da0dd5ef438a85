"""Going on: where a run continues, and that its data moves along."""

import copy
import io

import cloudpickle
import pytest
import torch

from workers.engine import Engine
from workers.errors import FastForwardWarning
from workers.events import Events


class Loader:
    """Batches with a cursor: each `iter` goes on to the end of the current pass."""

    def __init__(self, length=5):
        self.length = length
        self.cursor = 0
        self.seeks = []

    def __len__(self):
        return self.length

    def seek(self, iteration):
        self.seeks.append(iteration)
        self.cursor = iteration

    def __iter__(self):
        for batch in range(self.cursor, (self.cursor // self.length + 1) * self.length):
            self.cursor = batch + 1
            yield batch


class Stateful:
    """Batches that can be saved, but not told where to go."""

    def __init__(self, length=5):
        self.length = length
        self.next = 0

    def __len__(self):
        return self.length

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]

    def __iter__(self):
        while self.next < self.length:
            self.next += 1
            yield self.next - 1
        self.next = 0


class Memory:
    """Something attached that has a state."""

    def __init__(self):
        self.values = {}

    def state_dict(self):
        return dict(self.values)

    def load_state_dict(self, state):
        self.values = dict(state)


@pytest.fixture
def seen():
    return []


def engine_that(seen, stop_at=None):
    engine = Engine(lambda engine, batch: seen.append(batch))
    if stop_at is not None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=stop_at), engine.terminate)
    return engine


@pytest.mark.parametrize("stop_at", range(1, 15))
def test_data_with_a_cursor_is_told_where_to_go(seen, stop_at):
    first = engine_that(seen, stop_at)
    first.run(Loader(), max_epochs=3)
    second, data = engine_that(seen), Loader()
    second.load_state_dict(first.state_dict())
    second.run(data)
    assert seen == list(range(15))
    assert data.seeks == [stop_at]
    assert second.state.epoch == 3


@pytest.mark.parametrize("stop_at", [2, 5, 7])
def test_data_with_a_cursor_keeps_its_place_over_epochs_of_another_length(seen, stop_at):
    engine, data = engine_that(seen, stop_at), Loader(length=4)
    engine.run(data, max_epochs=3, epoch_length=3)
    engine.run(data)
    assert seen == list(range(9))
    assert data.seeks == [0, stop_at]


def test_data_with_a_cursor_skips_the_rest_of_a_terminated_epoch(seen):
    engine, data = engine_that(seen), Loader()
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.terminate_epoch)
    engine.run(data, max_epochs=2)
    assert seen == [0, 1, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("stop_at", [1, 4, 7])
def test_a_saved_state_of_the_data_is_restored(seen, stop_at):
    first = engine_that(seen, stop_at)
    first.run(Stateful(), max_epochs=3)
    second = engine_that(seen)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.state_dict()["data"] == {"next": stop_at % 5}
    second.run(Stateful())
    assert seen == list(range(5)) * 3


def test_data_with_a_state_goes_on_in_the_same_process(seen):
    engine, data = engine_that(seen, stop_at=7), Stateful()
    engine.run(data, max_epochs=2)
    engine.run(data)
    assert seen == list(range(5)) * 2


def test_other_data_is_read_up_to_its_place_with_a_warning(seen):
    engine = engine_that(seen)
    with pytest.warns(FastForwardWarning, match="3 batches were read and thrown away .* after iteration 8"):
        engine.run("abcde", max_epochs=2, resume_from_iteration=8)
    assert "".join(seen) == "de"


def test_data_without_a_length_is_read_up_to_its_place_too(seen):
    engine = engine_that(seen)
    with pytest.warns(FastForwardWarning, match="7 batches"):
        engine.run(Generated(), max_epochs=3, epoch_length=3, resume_from_iteration=7)
    assert "".join(seen) == "da"


class Generated:
    def __iter__(self):
        return iter("abcd")


def test_an_iterator_that_was_left_goes_on_where_it_was_left(seen):
    engine, data = engine_that(seen, stop_at=2), iter("abcdef")
    engine.run(data, max_epochs=2, epoch_length=3)
    engine.run(data)
    assert "".join(seen) == "abcdef"


def test_nothing_is_read_in_vain_at_the_end_of_an_epoch(seen):
    engine = engine_that(seen)
    engine.run("abc", max_epochs=3, resume_from_epoch=2)
    assert "".join(seen) == "abc"
    assert engine.state.counters[Events.EPOCH_STARTED] == 3
    assert engine.state.counters[Events.RESUMED] == 1


def test_the_iteration_wins_over_the_epoch(seen):
    engine_that(seen).run(Loader(3), max_epochs=3, resume_from_iteration=7, resume_from_epoch=1)
    assert seen == [7, 8]


def test_an_epoch_to_resume_from_needs_a_length(seen):
    with pytest.raises(ValueError, match=r"resume_from_epoch=2\): expected data with a length"):
        engine_that(seen).run(iter("abc"), resume_from_epoch=2)


def test_resuming_from_zero_starts_over(seen):
    engine = engine_that(seen, stop_at=2)
    engine.run("abc", max_epochs=2)
    engine.run("xy", resume_from_iteration=0)
    assert "".join(seen) == "abxy"
    assert engine.state.counters[Events.STARTED] == 2


def test_a_run_that_goes_on_keeps_its_epoch_length(seen):
    engine = engine_that(seen, stop_at=2)
    engine.run(Loader(3), max_epochs=2)
    with pytest.raises(
        ValueError,
        match=r"run\(epoch_length=4\): expected 3, .* after iteration 2, received 4",
    ):
        engine.run(Loader(4), epoch_length=4)
    with pytest.raises(ValueError, match=r"run\(max_iters=1\): expected a goal beyond iteration 2"):
        engine.run(Loader(3), max_iters=1)


def test_a_run_that_goes_on_may_get_another_goal(seen):
    engine = engine_that(seen, stop_at=2)
    engine.run(Loader(3), max_epochs=2)
    engine.run(Loader(3), max_iters=5)
    assert seen == [0, 1, 2, 3, 4]
    assert (engine.state.max_epochs, engine.state.max_iters) == (None, 5)


@pytest.mark.parametrize("event", [Events.EPOCH_COMPLETED, Events.COMPLETED, Events.ITERATION_COMPLETED])
def test_a_state_saved_at_an_event_does_not_fire_it_again(seen, event):
    engine, saved = engine_that(seen), []
    engine.add_event_handler(event, lambda e: saved.append(e.state_dict()))
    engine.run(Loader(2), max_epochs=2)
    other = engine_that([])
    fired = []
    for each in (Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, Events.ITERATION_COMPLETED):
        other.add_event_handler(each, lambda e, *, each=each: fired.append((each.key, e.state.counters[each])))
    other.load_state_dict(saved[-1])
    other.run(Loader(2))
    expected = [("EPOCH_COMPLETED", 2)] if event is Events.ITERATION_COMPLETED else []
    assert fired == expected
    assert other.state.counters[Events.COMPLETED] >= 1


def test_a_state_saved_as_an_epoch_starts_does_not_start_it_again(seen):
    engine, saved = engine_that(seen), []
    engine.add_event_handler(Events.EPOCH_STARTED(once=2), lambda e: saved.append(e.state_dict()))
    engine.run(Loader(2), max_epochs=2)
    other, epochs = engine_that([]), []
    other.add_event_handler(Events.EPOCH_STARTED, lambda e: epochs.append(e.state.epoch))
    other.load_state_dict(saved[0])
    assert other.state.epoch == 2
    other.run(Loader(2))
    assert epochs == []
    assert other.state.iteration == 4


def test_a_loaded_engine_that_had_not_started_starts(seen):
    engine, other = engine_that(seen), engine_that(seen)
    other.load_state_dict(engine.state_dict())
    other.run(Loader(2))
    assert (other.state.counters[Events.STARTED], other.state.counters[Events.RESUMED]) == (1, 0)


def test_a_loaded_engine_that_had_just_started_resumes(seen):
    engine, saved = engine_that(seen), []
    engine.add_event_handler(Events.STARTED, lambda e: saved.append(e.state_dict()))
    engine.run(Loader(2), max_epochs=2)
    other = engine_that(seen)
    other.load_state_dict(saved[0])
    other.run(Loader(2))
    assert (other.state.counters[Events.STARTED], other.state.counters[Events.RESUMED]) == (1, 1)
    assert other.state.iteration == 4


def test_a_loaded_run_that_was_over_has_nothing_left_to_do(seen):
    engine, other = engine_that(seen), engine_that(seen)
    engine.run(Loader(2), max_epochs=2)
    other.load_state_dict(engine.state_dict())
    other.run(Loader(2), max_epochs=2)
    assert seen == [0, 1, 2, 3]
    assert (other.state.counters[Events.RESUMED], other.state.counters[Events.COMPLETED]) == (1, 2)
    other.load_state_dict(engine.state_dict())
    other.run(Loader(2), max_epochs=3)
    assert seen == [0, 1, 2, 3, 4, 5]


def test_a_loaded_evaluation_that_was_over_starts_anew(seen):
    engine, other = engine_that(seen), engine_that(seen)
    engine.run(Loader(2))
    other.load_state_dict(engine.state_dict())
    other.run(Loader(3))
    assert seen == [0, 1, 0, 1, 2]
    assert other.state.counters[Events.STARTED] == 2


def test_an_engine_can_be_rewound_in_place(seen):
    engine, saved, heard = engine_that(seen), [], []
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda e: saved.append(e.state_dict()))
    engine.add_event_handler(Events.ITERATION_STARTED(every=2), lambda e: heard.append(e.state.iteration))
    data = Loader(3)
    engine.run(data, max_epochs=2)
    engine.load_state_dict(saved[0])
    engine.run(data)
    assert seen == [0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert heard == [2, 4, 6, 4, 6]


def test_the_saved_state_is_plain_data():
    engine = Engine(lambda engine, batch: None)
    memory = Memory()
    memory.values = {"mean": torch.ones(2)}
    engine.attach("memory", memory)
    engine.attach("stateless", object())
    engine.state_dict_user_keys.append("best")
    engine.state.best = 0.5
    engine.run([1, 2], max_epochs=2)
    file = io.BytesIO()
    torch.save(engine.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert saved["iteration"] == 4
    assert saved["counters"]["EPOCH_COMPLETED"] == 2
    other = Engine(lambda engine, batch: None)
    other.attach("memory", Memory())
    other.state_dict_user_keys.append("best")
    other.load_state_dict(saved)
    assert other.state.best == 0.5
    assert other.attached["memory"].values["mean"].tolist() == [1, 1]
    assert other.state_dict().keys() == saved.keys()


def test_a_state_of_pytorch_ignite_can_be_loaded(seen):
    engine = engine_that(seen)
    engine.load_state_dict({"epoch": 1, "epoch_length": 3, "max_epochs": 2})
    engine.run(Loader(3))
    assert seen == [3, 4, 5]


@pytest.mark.parametrize(
    ("saved", "error", "message"),
    [
        ([], TypeError, r"expected what state_dict\(\) gave, received \[\] \(list\)"),
        ({}, ValueError, "expected 'iteration', or 'epoch' and 'epoch_length', received the keys none"),
        ({"epoch": 2}, ValueError, "received the keys 'epoch'"),
        (
            {"iteration": -1},
            ValueError,
            r"load_state_dict\(iteration=...\): expected a whole number from 0, received -1",
        ),
        ({"iteration": 1.5}, TypeError, r"load_state_dict\(iteration=...\): .* received 1.5 \(float\)"),
        ({"iteration": 1, "counters": 3}, TypeError, r"counters=...\): expected counts by event, received 3"),
        ({"iteration": 1, "counters": {"A": -1}}, ValueError, r"counters\['A'\]=...\): expected a whole number"),
        ({"iteration": 1, "attached": 3}, TypeError, r"attached=...\): expected states by name, received 3"),
        (
            {"iteration": 1, "attached": {"x": {}}},
            ValueError,
            "expected states of what is attached, 'memory', received those of 'x'",
        ),
        (
            {"iteration": 7, "epoch_length": 5, "counters": {"EPOCH_COMPLETED": 2}},
            ValueError,
            "expected 1 completed epochs at iteration 7 with an epoch_length of 5, received 2",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(saved, error, message):
    engine = Engine(lambda engine, batch: None)
    engine.attach("memory", Memory())
    before = engine.state_dict()
    with pytest.raises(error, match=message):
        engine.load_state_dict(saved)
    assert engine.state_dict() == before


def test_user_keys_are_checked_on_both_ways():
    engine = Engine(lambda engine, batch: None)
    engine.state_dict_user_keys.append("best")
    with pytest.raises(ValueError, match="expected attributes of the state, received 'best', which it has not"):
        engine.state_dict()
    with pytest.raises(ValueError, match="the keys 'best' of state_dict_user_keys, received the keys 'iteration'"):
        engine.load_state_dict({"iteration": 1})
    engine.state_dict_user_keys[:] = ["iteration"]
    with pytest.raises(ValueError, match="received 'iteration', which is the engine's own; choose another"):
        engine.state_dict()


def test_a_running_engine_can_not_be_loaded():
    engine = Engine(lambda engine, batch: None)
    engine.add_event_handler(Events.STARTED, lambda e: e.load_state_dict({"iteration": 1}))
    with pytest.raises(RuntimeError, match="received one that does; load between runs"):
        engine.run([1])


def test_names_of_attached_things_are_unique():
    engine = Engine(lambda engine, batch: None)
    engine.attach("loss", 3)
    with pytest.raises(ValueError, match=r"attach\('loss'\): expected a name that is free, received that of 3"):
        engine.attach("loss", 4)


def test_an_engine_travels_with_its_handlers():
    heard = []
    engine = Engine(lambda engine, batch: batch * 2)
    engine.heard = heard
    engine.add_event_handler(Events.ITERATION_COMPLETED(every=2), lambda e, word: e.heard.append(word), "hi")
    engine.add_event_handler(Events.EPOCH_COMPLETED(throttle=100), lambda e: e.heard.append(e.state.output))
    engine.run([1, 2])
    copied = cloudpickle.loads(cloudpickle.dumps(engine))
    copied.run([1, 2, 3])
    assert copied.heard == ["hi", 4, "hi", 6]
    assert heard == ["hi", 4]


def test_an_interrupted_engine_travels_to_where_it_was():
    seen = []
    engine = engine_that(seen)
    handle = engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.interrupt)
    engine.run(Stateful(3), max_epochs=2)
    handle.remove()
    copied = cloudpickle.loads(cloudpickle.dumps(engine))
    copied.process_function = lambda engine, batch: seen.append(batch)
    copied.run()
    assert seen == [0, 1, 2, 0, 1, 2]
