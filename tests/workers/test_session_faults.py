"""What ends a rank's work badly: every kind of exception, wherever it is raised, is exactly one fault, told at once."""

import asyncio
import sys

import cloudpickle
import pytest

from tests.workers.hand_driver import HandDriver
from workers.engine import Engine
from workers.events import Events
from workers.messages import Answer, Arrived, Built, Fault, Finished, Hello, Joined
from workers.orders import Release
from workers.program import Program

cloudpickle.register_pickle_by_value(sys.modules[__name__])
EPOCH = Events.EPOCH_COMPLETED
STRANGE = [KeyboardInterrupt("no"), asyncio.CancelledError("no"), GeneratorExit("no"), BaseException("no")]


@pytest.fixture
def driver():
    with HandDriver() as driver:
        driver.expect(Hello)
        yield driver
    assert driver.session.outbox.closed


def program(step=lambda engine, batch: batch, evaluate=lambda engine, batch: batch):
    """A build function around two steps; its trainer suppresses every exception that its handlers hear of."""

    def build(worker):
        trainer, evaluator = Engine(step), Engine(evaluate)
        trainer.add_event_handler(Events.EXCEPTION_RAISED, trainer.suppress)
        return Program(engines={"trainer": trainer, "evaluator": evaluator}, data={"trainer": [1, 2], "evaluator": [1]})

    return build


def ready(driver, build, **options):
    driver.build(build, **options)
    driver.expect(Built)
    driver.join()
    driver.expect(Joined)


def raising(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize("error", STRANGE)
def test_an_exception_that_is_no_exception_is_a_fault_of_the_users_too(driver, error):
    ready(driver, program(step=raising(error)))
    driver.go()
    fault = driver.expect(Fault)
    assert (fault.kind, fault.failure.type_name, fault.failure.text) == ("user", type(error).__name__, "no")


@pytest.mark.parametrize("error", STRANGE)
def test_an_exception_that_is_no_exception_is_the_answer_of_a_call_too(driver, error):
    ready(driver, program())
    driver.call(1, raising(error))
    answer = driver.expect(Answer)
    assert (answer.value, str(answer.failure)) == (None, f"{type(error).__name__}: no")
    driver.go()
    driver.expect(Finished)


@pytest.mark.parametrize("error", [ValueError("no labels"), KeyboardInterrupt("no labels")])
def test_an_order_that_fails_at_a_gate_is_told_at_once_though_the_trainer_suppresses_exceptions(driver, error):
    ready(driver, program(evaluate=raising(error)), gates={"trainer": EPOCH})
    driver.go(max_epochs=2)
    driver.expect(Arrived)
    driver.evaluate(1)
    fault = driver.expect(Fault)
    assert (fault.phase, fault.failure.text) == ("evaluating with evaluator", "no labels")
    assert driver.session.trainer.state.counters["EXCEPTION_RAISED"] == 0


def test_an_order_that_fails_in_an_evaluation_at_a_gate_is_one_fault(driver):
    ready(driver, program(), gates={"trainer": EPOCH, "evaluator": EPOCH})
    driver.go()
    driver.expect(Arrived)
    driver.evaluate(1)
    driver.expect(Arrived)
    driver.evaluate(2, "no such engine")
    assert "no such engine" in driver.expect(Fault).failure.text
    driver.call(3, lambda worker: None)  # is not served any more


def test_after_a_fault_nothing_is_served_and_nothing_more_is_told():
    with HandDriver() as driver:
        driver.expect(Hello)
        ready(driver, program(evaluate=raising(ValueError("no"))), gates={"trainer": EPOCH})
        driver.go()
        arrived = driver.expect(Arrived)
        driver.evaluate(1)
        driver.order(Release(gate=arrived.gate, metrics={}))
        driver.go()
        driver.expect(Fault)
    assert driver.rest() == []
