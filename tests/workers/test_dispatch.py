import functools

import cloudpickle
import pytest

from workers.dispatch import EventSource
from workers.events import Event, EventEnum, Events

DING, DONG = Event("DING"), Event("DONG")


class Bell:
    """Writes down who called it."""

    def __init__(self):
        self.heard = []

    def hear(self, source, *rest):
        self.heard.append(rest)

    def __call__(self):
        self.heard.append("called")


@pytest.fixture
def source():
    return EventSource("me")


@pytest.fixture
def heard():
    return []


def test_handlers_get_the_subject(source, heard):
    source.add_event_handler(DING, heard.append)
    source.fire_event(DING)
    assert heard == ["me"]


def test_the_subject_is_the_source_by_default(heard):
    source = EventSource()
    source.add_event_handler(DING, heard.append)
    source.fire_event(DING)
    assert heard == [source]


def test_arguments_of_the_registration_follow_the_subject(source, heard):
    source.add_event_handler(DING, lambda *args, **kwargs: heard.append((args, kwargs)), 1, key=2)
    source.fire_event(DING)
    assert heard == [(("me", 1), {"key": 2})]


def test_a_handler_without_room_for_the_subject_does_without(source, heard):
    source.add_event_handler(DING, lambda: heard.append("none"))
    source.add_event_handler(DING, lambda a, b: heard.append((a, b)), 1, b=2)
    source.add_event_handler(DING, lambda a, b: heard.append((a, b)), 1, 2)
    source.fire_event(DING)
    assert heard == ["none", (1, 2), (1, 2)]


def test_any_callable_is_a_handler(source):
    bell = Bell()
    for handler in (bell, bell.hear, lambda: bell()):
        source.add_event_handler(DING, handler)
    source.add_event_handler(DING, functools.partial(bell.hear, "me", "partial"))
    source.fire_event(DING)
    assert bell.heard == ["called", (), "called", ("partial", "me")]


@pytest.mark.parametrize("event", [Events.COMPLETED, Events.COMPLETED(every=2)])
def test_a_handler_that_does_not_fit_is_refused_at_once(source, event):
    def handler(engine, needed, *, key):
        pass

    with pytest.raises(
        ValueError, match=r"COMPLETED: expected a handler that can be called with .engine, key=1. or .key=1., "
    ) as raised:
        source.add_event_handler(event, handler, key=1)
    assert str(raised.value).endswith(
        "handler(engine, needed, *, key); change its parameters, or what is passed at the registration"
    )
    assert not source.has_event_handler(handler)


def test_a_handler_can_be_called(source):
    with pytest.raises(TypeError, match="DING: expected a handler that can be called, received 3"):
        source.add_event_handler(DING, 3)


async def asynchronous(source):
    """A call of it makes a coroutine."""


def generating(source):
    yield source


async def both(source):
    yield source


class Asynchronous:
    async def __call__(self):
        """A call of it makes a coroutine."""


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (asynchronous, "an asynchronous function"),
        (functools.partial(asynchronous, 1), "an asynchronous function"),
        (Asynchronous(), "an asynchronous function"),
        (Asynchronous().__call__, "an asynchronous function"),
        (generating, "a generator function"),
        (both, "a generator function"),
    ],
)
def test_a_handler_of_which_a_call_runs_nothing_is_refused(source, handler, kind):
    with pytest.raises(ValueError, match=f"DING: expected a handler .*, {kind}, of which a call runs nothing; make it"):
        source.add_event_handler(DING, handler)
    assert not source.listens(DING)


@pytest.mark.parametrize("event", [3, None, max])
def test_only_events_are_listened_to(source, event):
    with pytest.raises(TypeError, match=r"event: expected an event, received"):
        source.add_event_handler(event, print)


def test_on_gives_the_function_back_and_stacks(source, heard):
    def tell(source, word):
        heard.append(word)

    assert source.on(DING, "one")(source.on(DONG, word="two")(tell)) is tell
    source.fire_event(DONG)
    source.fire_event(DING)
    assert heard == ["two", "one"]


def test_a_combination_calls_once_a_firing(source, heard):
    source.add_event_handler(DING | DING(every=1) | DING(every=2) | DONG, lambda: heard.append(1))
    source.fire_event(DING)
    source.fire_event(DING)
    source.fire_event(DONG)
    assert len(heard) == 3


def test_every_firing_is_counted_and_remembered(source):
    source.fire_event(DING)
    source.fire_event(DING)
    source.fire_event(DONG)
    assert (source.counters[DING], source.counters["DONG"], source.counters[Events.STARTED]) == (2, 1, 0)
    assert source.last_event == DONG


def test_filters_work_on_custom_events(source, heard):
    source.add_event_handler(DING(every=2), lambda: heard.append(source.counters[DING]))
    for _ in range(5):
        source.fire_event(DING)
    assert heard == [2, 4]


def test_throttle_reads_the_sources_clock(heard):
    now = [0.0]
    source = EventSource(clock=lambda: now[0])
    source.add_event_handler(DING(throttle=10), lambda: heard.append(now[0]))
    for now[0] in (0.0, 9.0, 10.0, 11.0, 25.0):
        source.fire_event(DING)
    assert heard == [0.0, 10.0, 25.0]


def test_each_registration_has_its_own_throttle(heard):
    now, filtered = [0.0], DING(throttle=10)
    source = EventSource(clock=lambda: now[0])
    source.add_event_handler(filtered, heard.append, "first")
    source.fire_event(DING)
    source.add_event_handler(filtered, lambda: heard.append("second"))
    source.fire_event(DING)
    assert heard[1:] == ["second"]


def test_handlers_run_by_phase_then_in_the_order_of_registration(source, heard):
    for phase in ("gate", "user", "metrics", "gate", "user", "metrics"):
        source.add_phase_handler(phase, DING, lambda *, phase=phase: heard.append(phase))
    source.add_event_handler(DING(every=1), lambda: heard.append("plain"))
    source.fire_event(DING)
    assert heard == ["metrics", "metrics", "user", "user", "plain", "gate", "gate"]


def test_filtered_handlers_keep_their_place_among_the_others(source, heard):
    events = (DING, DING(every=2), DING, DING(once=2), DING(event_filter=lambda *_: True))
    for name, event in zip("abcde", events, strict=True):
        source.add_event_handler(event, lambda *, name=name: heard.append(name))
    source.fire_event(DING)
    source.fire_event(DING)
    assert "".join(heard) == "ace" + "abcde"


def test_there_are_three_phases(source):
    with pytest.raises(ValueError, match="expected one of metrics, user, decision, gate, received 'late'"):
        source.add_phase_handler("late", DING, print)


def test_a_handle_takes_the_handler_off_every_event(source, heard):
    handle = source.add_event_handler(DING | DONG, lambda: heard.append(1))
    handle.remove()
    handle.remove()
    source.fire_event(DING)
    source.fire_event(DONG)
    assert heard == []


def test_a_handle_is_a_context(source, heard):
    with source.add_event_handler(DING, lambda: heard.append(1)):
        source.fire_event(DING)
    source.fire_event(DING)
    assert heard == [1]


def test_has_event_handler_asks_about_an_event_or_any(source):
    source.add_event_handler(DING(every=2), print)
    assert source.has_event_handler(print)
    assert source.has_event_handler(print, DING)
    assert source.has_event_handler(print, DING(every=2))
    assert not source.has_event_handler(print, DING(every=3))
    assert not source.has_event_handler(print, DONG)
    assert not source.has_event_handler(max)


def test_remove_event_handler_takes_bound_methods_too(source):
    bell = Bell()
    source.add_event_handler(DING, bell.hear)
    source.remove_event_handler(bell.hear, DING)
    assert not source.has_event_handler(bell.hear)


def test_removing_what_is_not_there_is_an_error(source):
    source.add_event_handler(DING, print)
    with pytest.raises(ValueError, match=r"remove_event_handler: expected a handler .* to DONG, received print"):
        source.remove_event_handler(print, DONG)


def test_a_handler_added_during_a_firing_waits_for_the_next(source, heard):
    def late():
        heard.append("late")

    source.add_event_handler(DING(once=1), lambda: source.add_event_handler(DING, late))
    source.fire_event(DING)
    assert heard == []
    source.fire_event(DING)
    assert heard == ["late"]


def test_a_handler_removed_during_a_firing_does_not_run_in_it(source, heard):
    source.add_event_handler(DING, lambda: handle.remove())
    handle = source.add_event_handler(DING, lambda: heard.append("removed"))
    source.fire_event(DING)
    source.fire_event(DING)
    assert heard == []


def test_a_handler_may_fire_other_events(source, heard):
    source.add_event_handler(DING, lambda: source.fire_event(DONG))
    source.add_event_handler(DING, lambda: heard.append(source.last_event))
    source.add_event_handler(DONG, lambda: heard.append(source.last_event))
    source.fire_event(DING)
    assert heard == [DONG, DING]


def test_dispatch_takes_counts_that_jump_repeat_and_go_back(source, heard):
    source.add_event_handler(DING(every=5), lambda: heard.append(source.counters[DING]))
    for count in (1, 5, 12, 15, 15, 10, 11, 30, 3, 5):
        source.dispatch(DING, count)
    assert heard == [5, 15, 15, 10, 30, 5]


def test_dispatch_counts_also_what_nobody_hears(source):
    source.dispatch(DING, 7)
    assert source.counters[DING] == 7
    assert source.last_event == DING
    source.fire_event(DING)
    assert source.counters[DING] == 8


def test_extra_arguments_go_to_handlers_with_room_for_them(source, heard):
    source.add_event_handler(DING, lambda source: heard.append(()))
    source.add_event_handler(DING, lambda source, a: heard.append((a,)))
    source.add_event_handler(DING, lambda source, a, b, last: heard.append((a, b, last)), "last")
    source.fire_event(DING, 1, 2)
    assert heard == [(), (1,), (1, 2, "last")]


def test_events_of_an_engine_bring_nothing_along(source, heard):
    source.add_event_handler(Events.STARTED, lambda *args: heard.append(args))
    source.fire_event(Events.STARTED, "surprise")
    assert heard == [("me",)]


def test_listens_tells_whether_anybody_does(source):
    handle = source.add_event_handler(DING(once=1) | DONG, print)
    assert source.listens(DING)
    assert not source.listens(Event("ELSE"))
    handle.remove()
    assert not source.listens(DING)


class Strings(EventEnum):
    PLUCKED = "plucked"


def test_strings_stand_for_events_that_are_known(source, heard):
    source.register_events("snap", Event("CRACKLE"), Strings)
    source.register_events(*Strings)
    for name in ("snap", "CRACKLE", "plucked", "EPOCH_COMPLETED"):
        source.add_event_handler(name, heard.append)
        source.fire_event(name)
    assert len(heard) == 4


def test_a_string_nobody_registered_gets_a_hint(source):
    with pytest.raises(
        ValueError,
        match=r"event: expected the name of a known event, received 'epoch_complete'; did you mean 'EPOCH_COMPLETED'\?",
    ):
        source.add_event_handler("epoch_complete", print)
    with pytest.raises(
        ValueError,
        match=r"event: expected the name of a known event, received 'zz'; register_events\('zz'\) makes it known",
    ):
        source.fire_event("zz")


def test_registered_events_do_not_leak_into_other_sources(source):
    source.register_events("snap")
    with pytest.raises(ValueError, match="event: expected the name of a known event, received 'snap'"):
        EventSource().fire_event("snap")


@pytest.mark.parametrize("event", [DING(every=2), DING | DONG])
def test_only_plain_events_are_fired(source, event):
    with pytest.raises(TypeError, match="fire_event: expected a plain event, received DING"):
        source.fire_event(event)


def test_ten_thousand_handlers_cost_only_when_due(source, heard):
    for n in range(10_000):
        source.add_event_handler(DING(once=n + 1), lambda *, n=n: heard.append(n))
    for _ in range(100):
        source.fire_event(DING)
    assert heard == list(range(100))


def test_a_source_travels_with_its_handlers():
    source = EventSource()
    source.heard = []
    source.add_event_handler(DING(every=2) | DONG(throttle=5), lambda source, word: source.heard.append(word), "hi")
    source.fire_event(DING)
    copy = cloudpickle.loads(cloudpickle.dumps(source))
    copy.fire_event(DING)
    copy.fire_event(DONG)
    assert copy.heard == ["hi", "hi"]
    assert source.heard == []


def test_what_was_attached_inside_a_block_is_known_to_who_opened_it():
    source = EventSource()
    before = source.add_event_handler(DING, print)
    with source.recorded() as handles:
        source.add_event_handler(DING, len)
        with source.recorded() as inner:
            source.on(DING)(repr)
        source.add_phase_handler("gate", DING, str)
    assert (len(handles), len(inner)) == (2, 1)
    for handle in [*handles, *inner]:
        handle.remove()
    assert source.has_event_handler(print)
    assert not any(source.has_event_handler(handler) for handler in (len, repr, str))
    before.remove()
