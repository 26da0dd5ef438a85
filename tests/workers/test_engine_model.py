"""However often a run is left and gone on with, it makes the iterations and epochs of one that was not."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from tests.workers.test_engine_resume import Loader
from workers.engine import Engine
from workers.events import Events

LOOP = (Events.EPOCH_STARTED, Events.ITERATION_STARTED, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED)
WAYS = st.sampled_from(["terminate", "interrupt", "boundary", "reload"])


def logging_engine(log):
    engine = Engine(lambda engine, batch: log.append(f"batch {batch}"))
    for event in LOOP:
        engine.add_event_handler(event, lambda e, *, event=event: log.append(f"{event} {e.state.counters[event]}"))
    return engine


def leave(engine, way):
    if way == "boundary":
        engine.set_boundary(lambda engine: engine.terminate())
    elif way == "interrupt":
        engine.interrupt()
    else:
        engine.terminate()


@given(
    length=st.integers(1, 4),
    epochs=st.integers(1, 4),
    given_length=st.one_of(st.none(), st.integers(1, 6)),
    stops=st.lists(st.tuples(st.sampled_from(LOOP), st.integers(1, 12), WAYS), max_size=4),
)
def test_a_run_in_pieces_is_the_run_in_one(length, epochs, given_length, stops):
    whole, pieces = [], []
    logging_engine(whole).run(Loader(length), max_epochs=epochs, epoch_length=given_length)
    engine, data = logging_engine(pieces), Loader(length)
    for event, count, way in stops:
        with engine.add_event_handler(event(once=count), lambda e, way: leave(e, way), way):
            engine.run(data, max_epochs=epochs, epoch_length=given_length)
        engine.set_boundary(None)
        if engine.state.iteration == 0 and way in ("terminate", "boundary"):
            pieces.clear()  # nothing was done, so the next run is a fresh one
        if way == "reload":
            saved = engine.state_dict()
            engine, data = logging_engine(pieces), Loader(length)
            engine.load_state_dict(saved)
        if engine.state.counters[Events.EPOCH_COMPLETED] == epochs:
            break
    else:
        engine.run(data, max_epochs=epochs, epoch_length=given_length)
    assert pieces == whole


def test_the_engine_needs_neither_torch_nor_ray():
    code = "import sys, workers.engine; print([n for n in ('torch', 'ray', 'numpy') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
