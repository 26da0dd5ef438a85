"""Which events a run fires, in which order, with which numbers."""

import pytest

from workers.engine import Engine
from workers.events import Event, EventEnum, Events

LOOP = ("GET_BATCH_STARTED", "GET_BATCH_COMPLETED", "ITERATION_STARTED", "ITERATION_COMPLETED")


def recorded(engine, *events):
    """What fires from now on, as "EVENT count"."""
    log = []
    for event in events or Events:
        engine.add_event_handler(event, lambda e, *, event=event: log.append(f"{event} {e.state.counters[event]}"))
    return log


def quiet(log):
    return [line for line in log if not line.startswith(LOOP)]


def test_a_run_fires_its_events_in_order():
    engine = Engine(lambda engine, batch: batch)
    log = recorded(engine)
    engine.run("ab", max_epochs=2)
    step = [f"{event} {{n}}" for event in LOOP]
    steps = [[line.format(n=n) for line in step] for n in (1, 2, 3, 4)]
    assert log == [
        *("STARTED 1", "EPOCH_STARTED 1", *steps[0], *steps[1], "EPOCH_COMPLETED 1"),
        *("EPOCH_STARTED 2", *steps[2], *steps[3], "EPOCH_COMPLETED 2", "COMPLETED 1"),
    ]


def test_the_state_tells_where_the_run_is():
    seen = []
    engine = Engine(lambda engine, batch: batch * 10)

    @engine.on(Events.EPOCH_STARTED | Events.ITERATION_COMPLETED | Events.EPOCH_COMPLETED)
    def look(engine):
        s = engine.state
        seen.append((s.last_event.key[:6], s.epoch, s.iteration, s.epoch_iteration, s.output))

    engine.run([1, 2], max_epochs=2)
    assert seen == [
        ("EPOCH_", 1, 0, 0, None),
        ("ITERAT", 1, 1, 1, 10),
        ("ITERAT", 1, 2, 2, 20),
        ("EPOCH_", 1, 2, 2, 20),
        ("EPOCH_", 2, 2, 0, 20),
        ("ITERAT", 2, 3, 1, 10),
        ("ITERAT", 2, 4, 2, 20),
        ("EPOCH_", 2, 4, 2, 20),
    ]


def test_the_number_of_a_batch_is_known_before_its_iteration():
    engine = Engine(lambda engine, batch: None)
    seen = []
    for event in (Events.GET_BATCH_STARTED, Events.GET_BATCH_COMPLETED):
        engine.add_event_handler(event(once=2), lambda e: seen.append((e.state.iteration, e.announced)))
    engine.run([1, 2, 3])
    assert seen == [(1, 2), (1, 2)]


def test_batch_events_do_not_fire_without_data():
    batches = []
    engine = Engine(lambda engine, batch: batches.append(batch))
    log = recorded(engine)
    engine.run(None, epoch_length=2)
    assert batches == [None, None]
    assert [line.split()[0] for line in log] == [
        *("STARTED", "EPOCH_STARTED", "ITERATION_STARTED", "ITERATION_COMPLETED", "ITERATION_STARTED"),
        *("ITERATION_COMPLETED", "EPOCH_COMPLETED", "COMPLETED"),
    ]
    assert engine.state.counters[Events.GET_BATCH_STARTED] == 0


def test_a_handler_may_replace_the_batch():
    engine = Engine(lambda engine, batch: batch)
    for event in (Events.ITERATION_STARTED(once=1), Events.GET_BATCH_COMPLETED(once=2)):
        engine.add_event_handler(event, lambda engine: setattr(engine.state, "batch", "other"))
    outputs = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))
    engine.run("abc")
    assert outputs == ["other", "other", "c"]


def test_counters_follow_the_loop_though_nobody_listens():
    seen = []
    engine = Engine(lambda engine, batch: seen.append(engine.state.counters[Events.ITERATION_STARTED]))
    engine.run([1, 2], max_epochs=2)
    assert seen == [1, 2, 3, 4]
    assert dict(engine.state.counters) == {
        **dict.fromkeys(LOOP, 4),
        **{"EPOCH_STARTED": 2, "EPOCH_COMPLETED": 2, "STARTED": 1, "COMPLETED": 1},
    }


def test_events_of_a_run_are_counted_over_the_engines_life():
    engine = Engine(lambda engine, batch: None)
    log = recorded(engine, Events.COMPLETED(every=2), Events.EPOCH_COMPLETED)
    for _ in range(4):
        engine.run([1])
    assert [line for line in log if line.startswith("COMPLETED")] == ["COMPLETED(every=2) 0"] * 2
    assert engine.state.counters[Events.COMPLETED] == 4
    assert engine.state.counters[Events.EPOCH_COMPLETED] == 1


class Backprop(EventEnum):
    BACKWARD_STARTED = "backward_started"
    BACKWARD_COMPLETED = Event("BACKWARD_COMPLETED")


def test_a_process_function_may_fire_events_of_its_own():
    def step(engine, batch):
        engine.fire_event(Backprop.BACKWARD_STARTED)
        engine.fire_event(Backprop.BACKWARD_COMPLETED)

    engine = Engine(step)
    log = recorded(engine, Backprop.BACKWARD_STARTED, Backprop.BACKWARD_COMPLETED(every=2))
    engine.run([1, 2])
    assert log == ["backward_started 1", "backward_started 2", "BACKWARD_COMPLETED(every=2) 0"]
    assert engine.state.counters[Backprop.BACKWARD_COMPLETED] == 2


@pytest.mark.parametrize("event", [Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED, Backprop.BACKWARD_STARTED])
def test_filters_work_on_an_engine_that_never_ran(event):
    engine = Engine(lambda engine, batch: None)
    seen = []
    engine.add_event_handler(event(every=2), lambda: seen.append(engine.state.counters[event]))
    for _ in range(4):
        engine.fire_event(event)
    assert seen == [2, 4]
    assert engine.state.last_event == event


def test_an_event_of_the_loop_fired_by_hand_carries_the_iteration():
    def step(engine, batch):
        engine.fire_event(Events.ITERATION_COMPLETED)
        engine.fire_event(Events.EPOCH_COMPLETED)

    engine = Engine(step)
    log = recorded(engine, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED)
    engine.run([1, 2])
    assert log == [
        *("ITERATION_COMPLETED 1", "EPOCH_COMPLETED 1", "ITERATION_COMPLETED 1"),
        *("ITERATION_COMPLETED 2", "EPOCH_COMPLETED 1", "ITERATION_COMPLETED 2", "EPOCH_COMPLETED 1"),
    ]


def test_handlers_that_come_during_a_run_start_at_the_next_firing():
    engine = Engine(lambda engine, batch: None)
    late = []

    @engine.on(Events.ITERATION_COMPLETED(once=2))
    def attach():
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: late.append(e.state.iteration))
        engine.add_event_handler(Events.GET_BATCH_STARTED(every=2), lambda e: late.append(-e.announced))

    engine.run(range(5))
    assert late == [3, -4, 4, 5]


def test_a_handler_may_take_itself_off():
    engine = Engine(lambda engine, batch: None)
    seen = []

    @engine.on(Events.ITERATION_COMPLETED)
    def once(engine):
        seen.append(engine.state.iteration)
        engine.remove_event_handler(once, Events.ITERATION_COMPLETED)

    engine.run([1, 2, 3])
    assert seen == [1]


def test_the_time_of_an_epoch_and_of_the_run_can_be_read_in_their_handlers():
    engine = Engine(lambda engine, batch: None)
    times = []
    for event in (Events.EPOCH_COMPLETED, Events.COMPLETED):
        engine.add_event_handler(event, lambda e, *, event=event: times.append(e.state.times[event]))
    engine.run([1, 2], max_epochs=2)
    first, second, whole = times
    assert min(times) > 0
    assert whole > max(first, second)
    assert engine.state.times["COMPLETED"] == whole


def test_timers_tell_what_ran_how_often():
    engine = Engine(lambda engine, batch: engine.fire_event(Event("MINE")))
    engine.add_event_handler(Events.ITERATION_COMPLETED(every=2), lambda: None)
    engine.add_event_handler(Event("MINE"), lambda: None)
    engine.run([1, 2, 3], max_epochs=2)
    loop = engine.timers["epoch loop"]["iteration loop"]
    counts = {name: part.count for name, part in loop.parts.items()}
    assert counts == {"get batch": 6, "process function": 6, "event MINE": 6, "event ITERATION_COMPLETED": 3}
    assert (engine.timers.count, engine.timers["epoch loop"].count, loop.count) == (1, 2, 2)
    assert min(part.seconds for part in loop.parts.values()) > 0
    assert loop.seconds < engine.timers["epoch loop"].seconds < engine.timers.seconds
    assert "process function" in str(engine.timers)


def test_timers_are_reset_by_each_run():
    engine = Engine(lambda engine, batch: None)
    engine.run([1, 2, 3])
    engine.run([1, 2])
    assert engine.timers["epoch loop"]["iteration loop"]["get batch"].count == 2


def test_timers_can_be_read_during_the_run():
    engine = Engine(lambda engine, batch: None)
    seen = []

    @engine.on(Events.ITERATION_COMPLETED)
    def look(engine):
        seen.append(engine.timers["epoch loop"]["iteration loop"]["process function"].count)

    engine.run([1, 2, 3])
    assert seen == [1, 2, 3]
