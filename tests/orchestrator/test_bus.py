"""The driver's event bus: what its handlers ask of the ranks, in which order they run, and how they fail."""

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.bus import EventBus
from orchestrator.cluster_events import CheckpointCommitted, ClusterEvents, StragglerDetected
from orchestrator.errors import HandlerError, SpecError
from workers.events import Event, Events


@pytest.fixture
def bus() -> EventBus:
    return EventBus("trainer", "the orchestrator")


def nothing() -> None: ...


@pytest.mark.parametrize(
    "event",
    [
        Events.STARTED,
        Events.RESUMED,
        Events.EPOCH_STARTED,
        Events.EPOCH_COMPLETED,
        Events.TERMINATE,
        Events.INTERRUPT,
        Events.COMPLETED,
    ],
)
def test_starts_and_ends_of_runs_and_epochs_are_gates(bus: EventBus, event: Events) -> None:
    bus.listen(event, nothing)
    assert (bus.gates(), bus.watches()) == (event, None)


@pytest.mark.parametrize("event", [Events.ITERATION_COMPLETED, Events.GET_BATCH_STARTED, Event("WEIGHTS_CLIPPED")])
def test_iterations_batches_and_events_of_ones_own_are_watched(bus: EventBus, event: Event) -> None:
    bus.listen(event, nothing)
    assert (bus.gates(), bus.watches()) == (None, event)


def test_blocking_says_whether_the_ranks_wait(bus: EventBus) -> None:
    bus.listen(Events.ITERATION_COMPLETED(every=3), nothing, blocking=True)
    bus.listen(Events.EPOCH_COMPLETED, nothing, blocking=False)
    assert bus.gates() == Events.ITERATION_COMPLETED(every=3)
    assert bus.watches() == Events.EPOCH_COMPLETED


def test_a_bus_without_handlers_asks_nothing_of_the_ranks(bus: EventBus) -> None:
    assert (bus.gates(), bus.watches()) == (None, None)


def test_what_is_watched_for_the_journal_needs_no_handler(bus: EventBus) -> None:
    bus.watch(Events.EPOCH_COMPLETED)
    assert (bus.gates(), bus.watches()) == (None, Events.EPOCH_COMPLETED)


def test_a_combination_is_split_among_its_events(bus: EventBus) -> None:
    bus.listen(Events.COMPLETED | Events.ITERATION_COMPLETED(every=10), nothing)
    gates, watches = bus.gates(), bus.watches()
    assert gates is not None
    assert watches is not None
    assert gates.matches(Events.COMPLETED, 1, None)
    assert not gates.matches(Events.ITERATION_COMPLETED, 10, None)
    assert watches.matches(Events.ITERATION_COMPLETED, 10, None)
    assert not watches.matches(Events.ITERATION_COMPLETED, 9, None)
    assert not watches.matches(Events.COMPLETED, 1, None)


@pytest.mark.parametrize(
    "clock", [{"event_filter": lambda engine, count: False}, {"throttle": 3600.0}, {"timeout": 3600.0}]
)
def test_ranks_are_asked_for_counts_only(bus: EventBus, clock: dict[str, Any]) -> None:
    bus.listen(Events.EPOCH_COMPLETED(**clock) & Events.EPOCH_COMPLETED(every=2), nothing)
    gates = bus.gates()
    assert gates is not None
    assert [gates.matches(Events.EPOCH_COMPLETED, count, None) for count in (1, 2, 3, 4)] == [False, True, False, True]


def test_functions_and_clocks_are_asked_at_the_driver(bus: EventBus) -> None:
    called: list[object] = []
    bus.listen(Events.EPOCH_COMPLETED(event_filter=lambda run, count: (run, count)[1] == 2), called.append)
    for count in (1, 2, 3):
        bus.fire("EPOCH_COMPLETED", count)
    assert called == ["the orchestrator"]


def test_an_exception_is_no_firing_that_ranks_report(bus: EventBus) -> None:
    bus.listen(Events.EXCEPTION_RAISED, nothing)
    assert (bus.gates(), bus.watches()) == (None, None)


def test_handlers_run_by_phase_then_in_the_order_of_registration(bus: EventBus) -> None:
    order: list[str] = []
    for phase, name in (("gate", "save"), ("user", "first"), ("metrics", "evaluate"), ("user", "second")):
        bus.listen(Events.EPOCH_COMPLETED, lambda run, name: order.append(name), name, phase=phase)
    bus.fire("EPOCH_COMPLETED", 1)
    assert order == ["evaluate", "first", "second", "save"]


def test_a_handler_gets_the_orchestrator_its_arguments_and_what_came_with_the_event(bus: EventBus) -> None:
    got: list[object] = []
    bus.listen(Events.EXCEPTION_RAISED, lambda run, error, word: got.extend((run, error, word)), word="hot")
    error = RuntimeError("boom")
    bus.fire("EXCEPTION_RAISED", 1, error)
    assert got == ["the orchestrator", error, "hot"]


def raises_at_line_of_its_own() -> None:
    raise ValueError("no such curve")


def test_a_handler_that_raises_is_named_with_its_line_and_the_event(bus: EventBus) -> None:
    bus.listen(Events.EPOCH_COMPLETED(every=2), raises_at_line_of_its_own)
    with pytest.raises(HandlerError) as caught:
        bus.fire("EPOCH_COMPLETED", 4)
    line = raises_at_line_of_its_own.__code__.co_firstlineno + 1
    where = f"raises_at_line_of_its_own ({__file__}:{line})"
    # The outermost frame outside Rankfire is this test; the handler is the one that the bus called.
    assert str(caught.value) == f"driver handler {where} at EPOCH_COMPLETED #4 raised ValueError: no such curve"
    assert "ValueError: no such curve" in caught.value.traceback
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_exception_without_words_is_told_by_its_name(bus: EventBus) -> None:
    def stop() -> None:
        raise KeyError

    bus.listen(Events.COMPLETED, stop)
    with pytest.raises(HandlerError, match=r"at COMPLETED #1 raised KeyError$"):
        bus.fire("COMPLETED", 1)


def test_what_our_own_orders_raise_in_a_handler_stays_what_it_is(bus: EventBus) -> None:
    def handler() -> None:
        raise SpecError("no engine of that name")

    bus.listen(Events.COMPLETED, handler)
    with pytest.raises(SpecError, match="no engine of that name"):
        bus.fire("COMPLETED", 1)


def test_a_handler_that_is_removed_is_not_called(bus: EventBus) -> None:
    called: list[int] = []
    handle = bus.listen(Events.EPOCH_COMPLETED, lambda: called.append(1))
    bus.fire("EPOCH_COMPLETED", 1)
    handle.remove()
    bus.fire("EPOCH_COMPLETED", 2)
    assert called == [1]
    assert not bus.listens(Events.EPOCH_COMPLETED)


def test_a_late_handler_that_needs_a_new_gate_is_refused(bus: EventBus) -> None:
    bus.listen(Events.EPOCH_COMPLETED(every=5), nothing)
    bus.seal()
    with pytest.raises(SpecError) as caught:
        bus.listen(Events.EPOCH_COMPLETED(every=2), nothing)
    assert str(caught.value) == (
        "orchestrator.on(EPOCH_COMPLETED(every=2)): expected handlers to be registered before the run starts, "
        "received one in a started run, whose ranks do not report EPOCH_COMPLETED of engine 'trainer' there; register "
        "it before run()"
    )
    assert bus.gates() == Events.EPOCH_COMPLETED(every=5)


def test_a_late_handler_that_would_block_where_ranks_only_report_is_refused(bus: EventBus) -> None:
    bus.watch(Events.EPOCH_COMPLETED)
    bus.seal()
    with pytest.raises(SpecError, match="before the run starts"):
        bus.listen(Events.EPOCH_COMPLETED, nothing)


@pytest.mark.parametrize("early", [Events.EPOCH_COMPLETED, Events.EPOCH_COMPLETED(every=2)])
def test_a_late_handler_that_is_covered_is_accepted_and_called(bus: EventBus, early: Any) -> None:
    called: list[int] = []
    bus.listen(early, nothing)
    bus.seal()
    bus.listen(Events.EPOCH_COMPLETED(every=2), lambda: called.append(1))
    bus.fire("EPOCH_COMPLETED", 2)
    assert called == [1]


def test_a_late_observer_is_covered_by_a_gate(bus: EventBus) -> None:
    bus.listen(Events.EPOCH_COMPLETED, nothing)
    bus.seal()
    bus.listen(Events.EPOCH_COMPLETED, nothing, blocking=False)
    assert bus.watches() == Events.EPOCH_COMPLETED


def test_a_handler_for_ranks_can_be_checked_without_being_registered(bus: EventBus) -> None:
    def wants_three(engine: object, one: int, two: int) -> None: ...

    bus.check(Events.COMPLETED, wants_three, (1, 2), {})
    assert not bus.listens(Events.COMPLETED)
    with pytest.raises(ValueError, match="wants_three"):
        bus.check(Events.COMPLETED, wants_three, (1, 2, 3, 4), {})


def test_keys_that_ranks_send_become_the_events_that_were_listened_to(bus: EventBus) -> None:
    class Backprop(Event): ...

    event: Callable[[str], Event] = bus.event_of
    bus.listen(Backprop("BACKWARD_COMPLETED"), nothing)
    assert type(event("BACKWARD_COMPLETED")) is Backprop
    assert event("COMPLETED") is Events.COMPLETED
    assert repr(event("NEVER_SEEN")) == "NEVER_SEEN"


def test_a_string_stands_for_an_event_that_is_known(bus: EventBus) -> None:
    assert bus.expression("EPOCH_COMPLETED") is Events.EPOCH_COMPLETED
    with pytest.raises(ValueError, match="did you mean 'EPOCH_COMPLETED'"):
        bus.expression("EPOCH_COMPLETE")


# ---------------------------------------------------------------- events of the cluster
SLOW = StragglerDetected(rank=1, seconds=0.9, others=0.3, ratio=3.0)


@pytest.mark.parametrize("event", ClusterEvents)
def test_events_of_the_cluster_ask_nothing_of_the_ranks(bus: EventBus, event: ClusterEvents) -> None:
    bus.listen(event, nothing)
    assert (bus.gates(), bus.watches()) == (None, None)


def test_handlers_of_the_cluster_may_come_late(bus: EventBus) -> None:
    bus.seal()
    called: list[int] = []
    bus.listen(ClusterEvents.STRAGGLER_DETECTED, lambda: called.append(1))
    bus.tell(SLOW)
    assert called == [1]


def test_a_handler_gets_what_happened_behind_the_orchestrator_if_it_has_room(bus: EventBus) -> None:
    got: list[object] = []
    bus.listen(ClusterEvents.STRAGGLER_DETECTED, lambda run, slow, word: got.append((run, slow, word)), word="hot")
    bus.listen(ClusterEvents.STRAGGLER_DETECTED, lambda run: got.append(run))
    bus.listen(ClusterEvents.STRAGGLER_DETECTED, lambda: got.append(None))
    bus.listen("cluster.WORKER_LOST", lambda run, lost: got.append(lost))
    bus.tell(SLOW)
    assert got == [("the orchestrator", SLOW, "hot"), "the orchestrator", None]


def test_events_of_the_cluster_are_counted_filtered_and_combined_like_others(bus: EventBus) -> None:
    got: list[int] = []
    event = ClusterEvents.STRAGGLER_DETECTED(every=2) | ClusterEvents.CHECKPOINT_COMMITTED
    bus.listen(event, lambda run: got.append(bus.counters["cluster.STRAGGLER_DETECTED"]))
    for _ in range(5):
        bus.tell(SLOW)
    bus.tell(CheckpointCommitted(name="step-1", url="u", epoch=1, iteration=1, size=1, metrics={}))
    assert got == [2, 4, 5]


def test_only_the_ranks_part_of_a_mixed_combination_is_asked_of_them(bus: EventBus) -> None:
    bus.listen(Events.EPOCH_COMPLETED(every=2) | ClusterEvents.RECOVERED, nothing)
    gates = bus.gates()
    assert gates is not None
    assert [gates.matches(Events.EPOCH_COMPLETED, count, None) for count in (1, 2)] == [False, True]
    assert not gates.matches(ClusterEvents.RECOVERED, 1, None)
    assert bus.watches() is None


def test_an_event_of_ones_own_with_the_same_name_is_another(bus: EventBus) -> None:
    called: list[int] = []
    bus.listen(Event("STRAGGLER_DETECTED"), lambda: called.append(1))
    bus.tell(SLOW)
    assert (bus.watches(), called) == (Event("STRAGGLER_DETECTED"), [])


def test_handlers_that_are_not_through_yet_still_see_their_own_event(bus: EventBus) -> None:
    seen: list[Event | None] = []
    bus.listen(Events.EPOCH_COMPLETED, lambda: bus.tell(SLOW))
    bus.listen(ClusterEvents.STRAGGLER_DETECTED, lambda: seen.append(bus.last_event))
    bus.listen(Events.EPOCH_COMPLETED, lambda: seen.append(bus.last_event))
    bus.fire("EPOCH_COMPLETED", 1)
    assert seen == [ClusterEvents.STRAGGLER_DETECTED, Events.EPOCH_COMPLETED]


def test_a_handler_of_the_cluster_that_raises_is_named(bus: EventBus) -> None:
    bus.listen(ClusterEvents.STRAGGLER_DETECTED, raises_at_line_of_its_own)
    with pytest.raises(HandlerError, match=r"at cluster.STRAGGLER_DETECTED #1 raised ValueError: no such curve"):
        bus.tell(SLOW)


def test_no_rank_and_no_other_engine_sees_events_of_the_cluster(bus: EventBus) -> None:
    with pytest.raises(SpecError) as caught:
        bus.check(ClusterEvents.WORKER_LOST | Events.COMPLETED, nothing, (), {})
    assert str(caught.value) == (
        "orchestrator.on(cluster.WORKER_LOST | COMPLETED, rank=…): expected an event that engines fire, received "
        "cluster.WORKER_LOST, which the driver fires for the run as a whole; leave rank out"
    )
    with pytest.raises(SpecError, match=r"engine='evaluator'\): expected .*; leave engine out"):
        EventBus("evaluator", None).listen(ClusterEvents.RECOVERED, nothing)
