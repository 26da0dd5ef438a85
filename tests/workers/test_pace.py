"""How often snapshots are taken: as often as the budget allows, equally on all ranks, also after a rewind."""

import itertools

import pytest

from workers.engine import Engine
from workers.pace import EARLY, FIRST, GROWTH, WINDOW, Pace


class Clockwork:
    """A training whose steps and snapshots take the time that they are said to take."""

    def __init__(self, every="auto", *, step=1.0, cost=0.1, **options):
        self.now, self.step, self.cost = 0.0, step, cost
        self.taken, self.asked = [], []
        self.pace = Pace(every, clock=lambda: self.now, agree=options.pop("agree", self._agree), **options)
        self.trainer = Engine(self._step)
        self.trainer.add_phase_handler("gate", self.pace.expression, self._at)

    def _agree(self, number):
        self.asked.append((self.trainer.state.iteration, number))
        return number

    def _step(self, engine, batch):
        self.now += self.step if isinstance(self.step, float) else self.step(engine.state.iteration)

    def _at(self, engine):
        self.pace.at(engine.state.iteration, self._take)

    def _take(self):
        self.taken.append(self.trainer.state.iteration)
        self.now += self.cost if isinstance(self.cost, float) else self.cost(len(self.taken))

    def run(self, iterations):
        self.trainer.run(max_iters=iterations, epoch_length=100_000)


def test_a_fixed_number_is_kept_and_nothing_is_measured():
    training = Clockwork(5)
    training.run(23)
    assert training.taken == [5, 10, 15, 20]
    assert training.asked == []


def test_there_may_be_none():
    training = Clockwork(None)
    training.run(100)
    assert training.taken == []
    assert training.pace.next_count(3) > 1 << 60


def test_snapshots_cost_what_the_budget_allows():
    training = Clockwork(step=1.0, cost=0.25, budget=0.01)
    training.run(FIRST + 60)
    assert training.pace.every == 25
    assert training.taken == [6, 12, 18, 25, 50, 75]


@pytest.mark.parametrize(("cost", "every"), [(0.0, 1), (1e-6, 1), (0.015, 2), (1e9, 10_000)])
def test_the_number_is_whole_and_within_its_bounds(cost, every):
    training = Clockwork(step=1.0, cost=cost)
    training.run(FIRST)
    assert training.pace.every == every


def test_where_batches_are_kept_the_bound_is_lower():
    training = Clockwork(cost=100.0, most=50)
    training.run(FIRST)
    assert training.pace.every == 50


def test_neither_one_slow_step_nor_the_memory_of_the_first_snapshots_counts():
    slow = FIRST - 3
    training = Clockwork(step=lambda i: 500.0 if i == slow else 1.0, cost=lambda n: 9.0 if n < 3 else 0.25)
    training.run(FIRST)
    assert training.pace.every == 25


def test_it_is_measured_again_at_growing_distances():
    training = Clockwork(step=lambda i: 10.0 if i <= FIRST else 1.0, cost=0.5)
    training.run(FIRST * GROWTH * GROWTH)
    assert training.asked == [(FIRST, 5), (FIRST * GROWTH, 50), (FIRST * GROWTH * GROWTH, 50)]


def test_a_smaller_number_takes_effect_at_once():
    training = Clockwork(step=lambda i: 1.0 if i <= FIRST else 100.0, cost=1.0)
    training.run(FIRST * GROWTH + 5)
    assert training.pace.every == 1
    assert training.taken[-6:] == list(range(FIRST * GROWTH, FIRST * GROWTH + 6))


def test_where_nothing_is_due_nobody_is_called():
    training = Clockwork(step=1.0, cost=0.5)
    called = []
    training.trainer.add_event_handler(training.pace.expression, lambda engine: called.append(engine.state.iteration))
    training.run(FIRST * GROWTH)
    window = range(FIRST * GROWTH - WINDOW, FIRST * GROWTH + 1)
    assert called == [6, 12, *range(16, 25), 50, 100, 150, *window]


def test_the_run_that_goes_on_is_measured_anew():
    training = Clockwork(step=1.0, cost=0.5)
    training.pace.begin(0)
    training.run(FIRST)
    training.pace.begin(FIRST)
    assert training.pace.every == EARLY
    training.run(FIRST * 2)
    assert [iteration for iteration, _ in training.asked] == [FIRST, FIRST * 2]


def test_all_ranks_take_the_number_of_the_slowest():
    training = Clockwork(step=1.0, cost=0.1, agree=lambda number: max(number, 40))
    training.run(FIRST)
    assert training.pace.every == 40


def rewound(at, until):
    """A rank that trains, and is put back to what it was, with a newcomer beside it; what each asked and took."""
    survivor = Clockwork(step=1.0, cost=0.5)
    snapshots = {}
    take = survivor._take

    def taking():
        take()
        snapshots[survivor.trainer.state.iteration] = survivor.pace.state_dict(), survivor.trainer.state_dict()

    survivor._take = taking
    survivor.run(until)
    newcomer = Clockwork(step=1.0, cost=0.5, agree=lambda number: newcomer._agree(50))
    for training in (survivor, newcomer):
        training.taken, training.asked = [], []
        pace, engine = snapshots[at]
        training.trainer.load_state_dict(engine)
        training.pace.load_state_dict(pace)
        training.run(600)
    return survivor, newcomer


@pytest.mark.parametrize(("at", "until"), [(6, 8), (12, 30), (18, 23), (18, 30), (50, 61), (150, 191), (150, 192)])
def test_after_a_rewind_all_ranks_go_on_alike(at, until):
    survivor, newcomer = rewound(at, until)
    assert survivor.taken == newcomer.taken
    assert survivor.pace.state_dict() == newcomer.pace.state_dict()
    assert survivor.pace.every == 50
    asked = [[iteration for iteration, _ in training.asked] for training in (survivor, newcomer)]
    assert asked[0] == asked[1] != []


def test_a_newcomer_that_has_measured_nothing_has_no_opinion():
    numbers = []
    pace = Pace("auto", agree=lambda number: numbers.append(number) or number, clock=itertools.count().__next__)
    pace.load_state_dict({"every": 30, "start": 0, "next": 192})
    for iteration in range(181, 193):
        pace.at(iteration, lambda: None)
    assert numbers == [0]
    assert pace.every == 30


def test_the_device_is_waited_for_before_the_clock_is_read():
    order = []
    pace = Pace(1, settle=lambda: order.append("settled"), clock=lambda: order.append("read") or 0.0)
    pace.at(1, lambda: order.append("taken"))
    assert order[:2] == ["settled", "read"]
    assert order[-3:] == ["taken", "read", "read"]
