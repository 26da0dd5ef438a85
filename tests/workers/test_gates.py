"""The driver's gates, watches and handlers on a rank's engines."""

import cloudpickle
import pytest

from workers.engine import Engine
from workers.events import Events
from workers.gates import Shipped, attach_gates, runs_here
from workers.parcels import RankHandler
from workers.program import Program
from workers.rank import Membership

EPOCH, ITERATION = Events.EPOCH_COMPLETED, Events.ITERATION_COMPLETED


@pytest.fixture
def engine():
    return Engine(lambda engine, batch: batch)


@pytest.fixture
def program(engine):
    return Program(engines={"trainer": engine, "evaluator": Engine(lambda engine, batch: batch)})


def told_by(program, gates, watches):
    told = []

    def tell(how):
        return lambda name, engine, event, count: told.append((how, name, event.key, count))

    attach_gates(program, gates, watches, arrive=tell("gate"), observe=tell("watch"))
    return told


def test_gates_and_watches_tell_engine_event_and_count(program, engine):
    told = told_by(program, {"trainer": EPOCH(every=2)}, {"trainer": ITERATION(once=3), "evaluator": Events.STARTED})
    engine.run([0, 1], max_epochs=2)
    program.engines["evaluator"].run([0])
    assert told == [
        ("watch", "trainer", "ITERATION_COMPLETED", 3),
        ("gate", "trainer", "EPOCH_COMPLETED", 2),
        ("watch", "evaluator", "STARTED", 1),
    ]


def test_a_gate_covers_a_watch_of_the_same_firing(program, engine):
    told = told_by(program, {"trainer": EPOCH(every=2)}, {"trainer": EPOCH | ITERATION(once=1)})
    engine.run([0], max_epochs=3)
    firings = [("watch", "ITERATION_COMPLETED", 1), ("watch", "EPOCH_COMPLETED", 1), ("gate", "EPOCH_COMPLETED", 2)]
    assert [(how, key, count) for how, _, key, count in told] == [*firings, ("watch", "EPOCH_COMPLETED", 3)]


def test_the_handlers_of_the_user_run_before_the_gate(program, engine):
    told = told_by(program, {"trainer": EPOCH}, {})
    engine.add_event_handler(EPOCH, lambda: told.append("user"))
    engine.run([0])
    assert told == ["user", ("gate", "trainer", "EPOCH_COMPLETED", 1)]


def test_an_engine_that_is_not_there_is_the_drivers_to_tell(program, engine):
    told = told_by(program, {"elsewhere": EPOCH, "trainer": EPOCH}, {"nowhere": EPOCH})
    engine.run([0])
    assert told == [("gate", "trainer", "EPOCH_COMPLETED", 1)]


def shipped(where, function=print, *args, **kwargs):
    pickled = cloudpickle.dumps((function, args, kwargs))
    return RankHandler(engine="trainer", event=EPOCH, where=where, pickled=pickled)


def member(rank, local_rank=0):
    return Membership(generation=0, rank=rank, world_size=4, local_rank=local_rank)


@pytest.mark.parametrize(
    ("where", "ranks"),
    [(0, [0]), (2, [2]), ((1, 3), [1, 3]), ((), []), ("all", [0, 1, 2, 3]), ("local_rank_0", [0, 2])],
)
def test_a_handler_runs_where_it_says(where, ranks):
    assert [rank for rank in range(4) if runs_here(shipped(where), member(rank, rank % 2))] == ranks


def test_shipped_handlers_of_this_rank_are_attached_with_their_arguments(program, engine):
    def keep(engine, place, word="none"):
        engine.state.setdefault("kept", list).append((place, word))

    handlers = (shipped(0, keep, "a"), shipped(1, keep, "b"), shipped("all", keep, "c", word="d"))
    Shipped().attach(program, handlers, member(0))
    engine.run([0])
    assert engine.state.kept == [("a", "none"), ("c", "d")]


class Counted:
    """A handler with a state."""

    def __init__(self):
        self.calls = 0

    def __call__(self, engine):
        self.calls += 1
        engine.state.setdefault("seen", list).append((id(self), self.calls))

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


def test_a_rank_that_becomes_another_has_the_handlers_of_that_one_and_keeps_what_stays(program, engine):
    shipment, handlers = Shipped(), (shipped(0, Counted()), shipped("all", Counted()))
    for rank in (0, 1, 1):
        shipment.attach(program, handlers, member(rank))
        engine.run([0], resume_from_iteration=0)
    calls = {}
    for who, count in engine.state.seen:
        calls.setdefault(who, []).append(count)
    assert sorted(calls.values()) == [[1], [1, 2, 3]]
    assert list(engine.attached) == ["handler 1: Counted"]


class Hanging(Counted):
    """A handler that attaches itself, to several events, and is saved with its engine."""

    def attach(self, engine, name):
        engine.add_event_handler(Events.STARTED | EPOCH, self)
        engine.attach(name, self)


def hanging(where, name):
    pickled = cloudpickle.dumps((Hanging(), (name,), {}))
    return RankHandler(engine="trainer", event=None, where=where, pickled=pickled)


def test_a_handler_without_an_event_attaches_itself_once_with_all_its_events(program, engine):
    shipment, handlers = Shipped(), (hanging("all", "one"), hanging(1, "other"))
    shipment.attach(program, handlers, member(0))
    engine.run([0])
    assert [calls for _, calls in engine.state.seen] == [1, 2]
    assert list(engine.attached) == ["one"]
    shipment.attach(program, handlers, member(1))
    assert list(engine.attached) == ["one", "other"]
    shipment.attach(program, handlers, member(0))
    engine.run([0], resume_from_iteration=0)
    assert [calls for _, calls in engine.state.seen] == [1, 2, 3, 4]
    assert list(engine.attached) == ["one"]


def test_of_a_program_that_was_just_built_only_what_every_rank_attaches_comes_at_once(program, engine):
    handlers = (hanging(0, "first"), hanging("all", "every"), shipped("all"))
    shipment = Shipped()
    shipment.attach(program, handlers, member(0), built=True)
    assert list(engine.attached) == ["every"]
    assert not engine.has_event_handler(print)
    shipment.attach(program, handlers, member(0))
    assert list(engine.attached) == ["every", "first"]
    assert engine.has_event_handler(print)
