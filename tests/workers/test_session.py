"""One rank's life, driven by hand: every order's answer, gates, faults, and a way out of everything."""

import sys
import threading

import cloudpickle
import pytest
import torch
import torch.distributed as dist

from orchestrator.checkpoints.plan import GlobalPlan
from orchestrator.reduce import reduce_packs
from tests.waiting import wait_until
from tests.workers.hand_driver import PLACE, HandDriver
from workers.building import fingerprint_of
from workers.engine import Engine
from workers.events import Events
from workers.locations import storage_at
from workers.messages import Answer, Arrived, Built, Fault, Finished, Hello, Joined, Observed, Saved
from workers.metrics import attach_metric
from workers.orders import CutAt, FreezeSave, Go, PlanSave, ProposeCut, Release
from workers.parcels import GateKey, LoadPoint, Number, RankHandler
from workers.program import Program
from workers.shards import Frozen, load_state

cloudpickle.register_pickle_by_value(sys.modules[__name__])
EPOCH, ITERATION = Events.EPOCH_COMPLETED, Events.ITERATION_COMPLETED


def build(worker):
    """Sums its batches; the evaluator takes the mean of what it is given."""
    model = torch.nn.Linear(1, 1, bias=False)

    def step(engine, batch):
        with torch.no_grad():
            model.weight += batch.sum()
        return {"loss": batch.mean()}

    trainer, evaluator = Engine(step), Engine(lambda engine, batch: batch.mean())
    attach_metric(trainer, "loss", "mean", output=lambda out: out["loss"])
    attach_metric(evaluator, "mean", "mean")
    x = torch.arange(5.0)
    return Program(
        engines={"trainer": trainer, "evaluator": evaluator, "plain": Engine(lambda e, b: b), "idle": Engine(print)},
        data={
            "trainer": worker.loader(x, global_batch_size=2),
            "evaluator": worker.loader(x, global_batch_size=3),
            "plain": [1, 2, 3],
        },
        state={"model": model},
    )


@pytest.fixture
def driver():
    with HandDriver() as driver:
        driver.expect(Hello)
        yield driver
    assert driver.rest() == []
    assert driver.session.outbox.closed


def ready(driver, *, program=build, load=None, **options):
    driver.build(program, **options)
    built = driver.expect(Built)
    driver.join(load=load)
    driver.expect(Joined)
    return built


def at_gate(driver, *, event=EPOCH, **options):
    """A driver whose session waits at the end of the first epoch."""
    ready(driver, gates={"trainer": event}, **options)
    driver.go(max_epochs=2)
    return driver.expect(Arrived)


def release(driver, arrived, metrics=None, then="go on"):
    driver.order(Release(gate=arrived.gate, metrics=metrics or {}, then=then))


def end(driver, arrived):
    release(driver, arrived, then="terminate")
    return driver.expect(Finished)


def test_a_session_says_hello_and_leaves():
    with HandDriver() as driver:
        assert driver.expect(Hello).place == PLACE
    assert driver.session.phase == "leaving"
    assert driver.session.outbox.closed


def test_a_whole_life(driver):
    built = ready(driver, gates={"trainer": EPOCH})
    assert built.engines == ("trainer", "evaluator", "plain", "idle")
    assert built.state_bytes == {"model": 4}
    assert built.device == str(driver.session.worker.device)
    driver.go(max_epochs=2)
    for epoch in (1, 2):
        arrived = driver.expect(Arrived)
        assert arrived.gate == GateKey(engine="trainer", event="EPOCH_COMPLETED", count=epoch)
        assert (arrived.epoch, arrived.iteration, arrived.epoch_length) == (epoch, 3 * epoch, 3)
        assert arrived.samples == 5 * epoch
        assert arrived.output == {"loss": Number(value=4.0, count=1)}
        assert reduce_packs([arrived.packs], built.metrics["trainer"]) == {"loss": 2.0}
        release(driver, arrived)
    finished = driver.expect(Finished)
    assert (finished.iteration, finished.epoch) == (6, 2)
    sequence = [message.seq for message in driver.heard]
    assert sequence == list(range(len(sequence)))


def test_reduced_metrics_are_what_the_rank_has_from_then_on(driver):
    arrived = at_gate(driver)
    release(driver, arrived, {"loss": 7.0, "evaluator/mean": 3.0})
    second = driver.expect(Arrived)
    assert driver.session.trainer.state.metrics["evaluator/mean"] == 3.0
    assert set(second.packs) == {"loss"}
    end(driver, second)


def test_watched_firings_are_told_without_waiting(driver):
    ready(driver, watches={"trainer": ITERATION(every=2)})
    driver.go()
    observed = driver.expect(Observed)
    assert (observed.gate.count, observed.iteration) == (2, 2)
    driver.expect(Finished)


@pytest.mark.parametrize(("engine", "value"), [("evaluator", {"mean": 2.0}), ("plain", {})])
def test_an_evaluation_at_a_gate_answers_with_its_states(driver, engine, value):
    empty = ready(driver, gates={"trainer": EPOCH}).metrics
    driver.go()
    arrived = driver.expect(Arrived)
    samples = driver.session.worker.samples
    for number in (4, 9):
        driver.evaluate(number, engine)
        answer = driver.expect(Answer)
        assert (answer.order, answer.failure) == (number, None)
        assert reduce_packs([answer.value], empty[engine]) == value
    assert driver.session.worker.samples == samples
    end(driver, arrived)


def test_gates_inside_an_evaluation_carry_its_number(driver):
    ready(driver, gates={"evaluator": EPOCH})
    driver.evaluate(6)
    arrived = driver.expect(Arrived)
    assert arrived.gate == GateKey(engine="evaluator", event="EPOCH_COMPLETED", count=1, visit=6)
    assert driver.session.phase == "waiting at evaluator EPOCH_COMPLETED #1"
    release(driver, arrived)
    assert driver.expect(Answer).order == 6


def test_a_call_gets_the_worker_and_answers_with_its_value(driver):
    arrived = at_gate(driver)
    driver.call(1, lambda worker, a, b=0: (worker.rank, a + b), 2, b=3)
    assert cloudpickle.loads(driver.expect(Answer).value) == (0, 5)
    end(driver, arrived)


def test_a_call_that_returns_what_can_not_travel_answers_so_and_the_rank_goes_on(driver):
    arrived = at_gate(driver)
    driver.call(1, lambda worker: (number for number in range(3)))
    assert str(driver.expect(Answer).failure) == "TypeError: cannot pickle 'generator' object"
    end(driver, arrived)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit("no")])
def test_a_call_that_raises_answers_so_and_the_rank_goes_on(driver, error):
    def fail(worker):
        raise error

    arrived = at_gate(driver)
    driver.call(1, fail)
    answer = driver.expect(Answer)
    assert (answer.value, str(answer.failure)) == (None, f"{type(error).__name__}: no")
    assert "in fail" in answer.failure.traceback
    end(driver, arrived)


def begin_save(driver, url):
    """Plan and copy; what is written is told later."""
    driver.order(PlanSave(order=1))
    planned = driver.expect(Answer).value
    plan = GlobalPlan({0: planned.plan}, planned.spread)
    driver.order(FreezeSave(order=2, url=url, plan=plan.part(0)))
    messages = [driver.next(), driver.next()]  # the answer and the word of the writing thread, in any order
    (answer,) = [message for message in messages if isinstance(message, Answer)]
    assert (answer.order, answer.value, answer.failure) == (2, None, None)
    (saved,) = [message for message in messages if isinstance(message, Saved)]
    return planned, plan, saved


def save(driver, folder):
    _, plan, saved = begin_save(driver, str(folder))
    assert (saved.url, saved.failure) == (str(folder), None)
    plan.write_index(storage_at(folder), {0: saved.written.results})
    return saved.written


def test_a_checkpoint_that_was_saved_at_a_gate_is_where_another_session_goes_on(tmp_path, driver):
    arrived = at_gate(driver)
    paths = [receipt.path for receipt in save(driver, tmp_path).receipts]
    assert paths == ["data/__0_0.distcp", "ranks/rank-0000.pt", "shared.pt"]
    release(driver, arrived)
    end(driver, driver.expect(Arrived))
    weight = driver.session.program.state["model"].weight
    with HandDriver() as other:
        other.expect(Hello)
        other.build(build)
        other.expect(Built)
        other.join(load=LoadPoint(url=str(tmp_path), world_size=1))
        other.expect(Joined)
        assert other.session.trainer.state.iteration == 3
        other.go(max_epochs=2)
        assert other.expect(Finished).iteration == 6
    assert torch.equal(other.session.program.state["model"].weight, weight)


def build_stateful(worker):
    """Data that keeps a place of its own, which no other world size can take up."""

    class Stream:
        place = 0

        def __iter__(self):
            while True:
                self.place += 1
                yield self.place

        def state_dict(self):
            return {"place": self.place}

        def load_state_dict(self, state):
            self.place = state["place"]

    model = torch.nn.Linear(1, 1)
    return Program(
        engines={"trainer": Engine(lambda engine, batch: None)},
        data={"trainer": worker.loader(Stream())},
        state={"model": model},
    )


def test_a_place_that_belongs_to_another_world_size_is_refused_in_plain_words(tmp_path, driver):
    ready(driver, program=build_stateful, gates={"trainer": Events.ITERATION_COMPLETED(once=2)})
    driver.order(Go(max_epochs=None, max_iters=3, epoch_length=3))
    arrived = driver.expect(Arrived)
    save(driver, tmp_path)
    end(driver, arrived)
    with HandDriver() as other:
        other.expect(Hello)
        other.build(build_stateful)
        other.expect(Built)
        other.join(load=LoadPoint(url=str(tmp_path), world_size=2))
        failure = other.expect(Fault).failure
    assert failure.text.startswith("checkpoint: data['trainer']: expected the world size at which it was saved, 2")
    assert failure.traceback == ""


def test_a_folder_that_can_not_be_written_is_the_drivers_to_judge(tmp_path, driver):
    arrived = at_gate(driver)
    (tmp_path / "file").write_text("no folder")
    _, _, saved = begin_save(driver, str(tmp_path / "file"))
    assert (saved.written, saved.failure.type_name) == (None, "NotADirectoryError")
    assert len(save(driver, tmp_path / "elsewhere").receipts) == 3
    end(driver, arrived)


def test_a_rank_tells_what_only_it_knows_of_a_checkpoint(tmp_path, driver):
    arrived = at_gate(driver)
    planned, _, _ = begin_save(driver, str(tmp_path))
    assert (planned.cursor, planned.state) == ({"seed": 0, "position": 5}, {"model": 4})
    assert planned.spread == ()  # nothing here was prepared
    assert planned.data == fingerprint_of(driver.session.program)
    end(driver, arrived)


def test_training_goes_on_while_a_share_is_written(tmp_path, driver, monkeypatch):
    arrived, write, hold = at_gate(driver), Frozen.write, threading.Event()

    def slowly(frozen, storage):
        assert hold.wait(30)
        return write(frozen, storage)

    monkeypatch.setattr(Frozen, "write", slowly)
    driver.order(PlanSave(order=1))
    plan = GlobalPlan({0: driver.expect(Answer).value.plan})
    driver.order(FreezeSave(order=2, url=str(tmp_path), plan=plan.part(0)))
    driver.expect(Answer)
    weight = driver.session.program.state["model"].weight.item()
    release(driver, arrived)
    second = driver.expect(Arrived)  # an epoch later
    assert driver.session.program.state["model"].weight.item() != weight
    hold.set()
    plan.write_index(storage_at(tmp_path), {0: driver.expect(Saved).written.results})
    assert load_state(storage_at(tmp_path))["model"]["weight"].item() == weight
    end(driver, second)


def test_a_rank_that_leaves_finishes_the_share_that_it_writes(tmp_path):
    with HandDriver() as driver:
        driver.expect(Hello)
        at_gate(driver)
        begin_save(driver, str(tmp_path))
    assert not [thread for thread in threading.enumerate() if thread.name == "rankfire-save"]


def test_a_state_that_can_not_be_saved_is_a_fault_that_names_it(driver):
    def odd(worker):
        program = build(worker)
        program.state["odd"] = Odd()
        return program

    at_gate(driver, program=odd)
    driver.order(PlanSave(order=1))
    assert "checkpoint: state 'odd.set': expected tensors" in driver.expect(Fault).failure.text


class Odd:
    def state_dict(self):
        return {"set": {1}}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize(("then", "epochs", "last"), [("terminate", 1, "TERMINATE"), ("interrupt", 1, "INTERRUPT")])
def test_a_release_may_end_the_run(driver, then, epochs, last):
    arrived = at_gate(driver)
    release(driver, arrived, then=then)
    assert driver.expect(Finished).epoch == epochs
    assert driver.session.trainer.state.counters[last] == 1
    assert driver.session.trainer.state.counters["COMPLETED"] == (then == "terminate")


def test_a_run_that_was_interrupted_goes_on_with_the_next_go(driver):
    release(driver, at_gate(driver), then="interrupt")
    driver.expect(Finished)
    driver.go(max_epochs=2)
    release(driver, driver.expect(Arrived))
    assert driver.expect(Finished).iteration == 6


def careless(worker):
    """A program that suppresses every exception, and tells when its run was completed."""
    program = build(worker)
    trainer = program.engines["trainer"]
    trainer.add_event_handler(Events.EXCEPTION_RAISED, trainer.suppress)
    return program


def test_leave_in_the_middle_of_a_gate_unwinds_the_training_thread():
    with HandDriver() as driver:
        driver.expect(Hello)
        at_gate(driver, program=careless)
    assert driver.rest() == []
    counters = driver.session.trainer.state.counters
    assert (counters["EPOCH_COMPLETED"], counters["COMPLETED"], counters["EXCEPTION_RAISED"]) == (1, 0, 0)
    assert driver.session.phase == "leaving"


def handler(where, function):
    return RankHandler(engine="trainer", event=EPOCH, where=where, pickled=cloudpickle.dumps((function, (), {})))


def test_shipped_handlers_run_here_before_the_gate_and_once_after_a_second_join(driver):
    def count(engine):
        engine.state.metrics["calls"] = engine.state.metrics.get("calls", 0) + 1

    ready(driver, gates={"trainer": EPOCH}, handlers=(handler(0, count), handler(1, count)))
    driver.join()
    driver.expect(Joined)
    driver.go()
    arrived = driver.expect(Arrived)
    assert arrived.packs["calls"] == Number(value=1)
    end(driver, arrived)


# ---------------------------------------------------------------- control and pulses
def test_a_cut_stops_at_the_next_boundary_and_is_a_gate_of_its_own(driver):
    arrived = at_gate(driver, event=ITERATION(once=1))
    assert driver.session.control(ProposeCut(order=8))
    assert driver.expect(Answer).value == 1
    assert driver.session.control(CutAt(iteration=2))
    release(driver, arrived)
    cut = driver.expect(Arrived)
    assert (cut.gate, cut.iteration) == (GateKey(engine="trainer", event="CUT", count=2), 2)
    assert end(driver, cut).iteration == 2


def test_what_can_wait_is_no_control(driver):
    assert not driver.session.control(PlanSave(order=1))


def test_a_pulse_tells_phase_and_progress_at_any_time(driver):
    assert (driver.session.pulse().phase, driver.session.pulse().iteration) == ("starting", 0)
    arrived = at_gate(driver)
    pulse = driver.session.pulse()
    assert pulse.phase == "waiting at trainer EPOCH_COMPLETED #1"
    assert (pulse.iteration, pulse.epoch, pulse.samples, pulse.drops) == (3, 1, 5, 0)
    assert pulse.output == {"loss": Number(value=4.0)}
    end(driver, arrived)
    driver.session.outbox.take(timeout=0)
    wait_until(lambda: driver.session.pulse().phase == "finished", what="the last phase")


# ---------------------------------------------------------------- faults
def failing(where, error):
    """A build function whose program raises at one place."""

    def fail(*_):
        raise error

    def broken(worker):
        if where == "build":
            fail()
        program = build(worker)
        trainer, evaluator = program.engines["trainer"], program.engines["evaluator"]
        if where == "step":
            step = trainer.process_function
            trainer.process_function = lambda e, b: fail() if e.state.iteration == 2 else step(e, b)
        elif where == "evaluator":
            evaluator.process_function = fail
        elif where == "handler":
            trainer.add_event_handler(ITERATION(once=2), fail)
        return program

    return broken


FAULTS = [
    ("build", "building the program", 0),
    ("step", "training", 2),
    ("handler", "training", 2),
    ("evaluator", "evaluating with evaluator", 3),
]
ERRORS = [
    (ValueError("wrong"), "user"),
    (SystemExit("wrong"), "user"),
    (RuntimeError("Connection closed by peer"), "user"),  # the program's own words
    (dist.DistBackendError("Connection closed by peer"), "communication"),
    (MemoryError("no room"), "memory"),
]


@pytest.mark.parametrize(("error", "kind"), ERRORS)
@pytest.mark.parametrize(("where", "phase", "iteration"), FAULTS)
def test_what_the_program_raises_is_exactly_one_fault(driver, where, phase, iteration, error, kind):
    driver.build(failing(where, error), gates={"trainer": EPOCH})
    driver.join()
    driver.go()
    driver.evaluate(1)
    fault = first_fault(driver)
    assert (fault.kind, fault.phase, fault.iteration) == (kind, phase, iteration)
    assert (fault.failure.type_name, fault.failure.text) == (type(error).__name__, str(error))
    assert "in fail" in fault.failure.traceback
    assert driver.session.error is error or str(driver.session.error) == str(error)
    driver.call(2, lambda worker: None)  # is not served any more


def first_fault(driver):
    while type(message := driver.next()) is not Fault:
        pass
    return message


def test_an_evaluation_without_data_is_a_fault_that_names_it(driver):
    ready(driver)
    driver.evaluate(1, "idle")
    failure = driver.expect(Fault).failure
    assert (
        str(failure) == "ProgramError: evaluate('idle'): expected data for it, received none; give Program data['idle']"
    )


def test_a_user_who_catches_everything_does_not_catch_the_end():
    with HandDriver() as driver:
        driver.expect(Hello)

        def catches_all(worker):
            program = build(worker)
            evaluator, inner = program.engines["evaluator"], program.engines["trainer"]

            def step(engine, batch):
                try:
                    inner.run([torch.zeros(1)], max_epochs=1, resume_from_iteration=0)
                except Exception:
                    engine.state.caught = True

            evaluator.process_function = step
            return program

        ready(driver, program=catches_all, gates={"trainer": EPOCH})
        driver.evaluate(1)
        driver.expect(Arrived)
    assert "caught" not in vars(driver.session.program.engines["evaluator"].state)
