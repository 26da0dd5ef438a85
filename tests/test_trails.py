"""What the benchmarks of recovery compute from the trails of ranks: `benchmarks/_trail.py`."""

import os

from tests.benchmarks._trail import Recovery, Step, Trail, Trails, completions, recovery, step_times


def steps(generation, iterations, *, begin, ranks=(0, 1), world_size=2):
    """One step a second on every rank, the last rank a tenth behind."""
    return [
        Step(rank, generation, rank, world_size, iteration, begin + second + 0.1 * (rank == max(ranks)), 0.0)
        for second, iteration in enumerate(iterations)
        for rank in ranks
    ]


def test_an_iteration_is_complete_when_its_last_rank_is():
    assert completions(steps(0, [1, 2], begin=10.0)) == {(0, 1): 10.1, (0, 2): 11.1}


def test_what_the_survivor_alone_completed_does_not_count():
    assert completions(steps(0, [1], begin=10.0, ranks=[1])) == {}


def test_a_recovery_is_over_when_an_iteration_is_completed_that_never_was():
    before, after = steps(0, [1, 2, 3, 4], begin=0.0), steps(1, [3, 4, 5], begin=5.0)
    survivor = steps(0, [5], begin=4.0, ranks=[0])
    found = recovery(completions([*before, *survivor, *after]), struck=3.5)
    assert found == Recovery(again=5.1 - 3.5, ahead=7.1 - 3.5, lost=2)


def test_a_recovery_without_loss_is_over_with_the_first_iteration():
    found = recovery(completions([*steps(0, [1, 2], begin=0.0), *steps(1, [3], begin=5.0)]), struck=1.5)
    assert found == Recovery(again=5.1 - 1.5, ahead=5.1 - 1.5, lost=0)


def test_a_smaller_world_recovers_too():
    before = steps(0, [1, 2], begin=0.0, ranks=[0, 1, 2], world_size=3)
    found = recovery(completions([*before, *steps(1, [3], begin=5.0)]), struck=1.5)
    assert found is not None
    assert found.lost == 0


def test_it_is_not_over_while_what_was_lost_is_computed_again():
    done = completions([*steps(0, [1, 2, 3], begin=0.0), *steps(1, [2, 3], begin=5.0)])
    assert recovery(done, struck=2.5) is None


def test_the_time_of_a_fault_is_no_step():
    done = [*steps(0, [1, 2], begin=0.0), *steps(1, [3, 4, 5], begin=50.0)]
    assert step_times(done) == [1.0, 1.0, 1.0]


def test_a_trail_is_read_on_while_it_grows(tmp_path):
    trail, trails = Trail(tmp_path), Trails(tmp_path)
    assert [process.pid for process in trails.look().waiting()] == [os.getpid()]
    assert trails.ranks() == {}
    trail.completed(generation=3, rank=1, world_size=2, iteration=7)
    trail.completed(generation=3, rank=1, world_size=2, iteration=8)
    assert [step.iteration for step in trails.look().steps] == [7, 8]
    trail.completed(generation=4, rank=0, world_size=2, iteration=8)
    assert [step.generation for step in trails.look().steps] == [3, 3, 4]
    assert {rank: process.pid for rank, process in trails.ranks().items()} == {0: os.getpid()}
    assert trails.waiting() == []
