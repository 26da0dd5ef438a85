"""From a build order to a program: where the function is found, what it may expect, and how it may fail."""

import sys

import cloudpickle
import pytest
import torch
from torchmetrics import MeanMetric, SumMetric

from workers.building import build_program, make_worker, metrics_of, state_bytes
from workers.engine import Engine
from workers.errors import ProgramError
from workers.metrics import attach_metric
from workers.orders import Build
from workers.program import Program
from workers.rank import Membership

MEMBER = Membership(generation=0, rank=1, world_size=2)
SOURCE = """
from workers import Engine, Program
number = 3
def build(worker):
    return Program(engines={"trainer": Engine(lambda engine, batch: batch)})
def wrong(worker):
    return 3
def broken(worker):
    raise ValueError("no data")
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "user_program.py").write_text(SOURCE)
    (tmp_path / "user_broken.py").write_text("import no_such_module_at_all")
    yield str(tmp_path)
    for name in ("user_program", "user_broken"):
        sys.modules.pop(name, None)


def build(program, **fields):
    order = Build(**({"program": program, "config": {"lr": 1}, "seed": 3, "membership": MEMBER} | fields))
    return build_program(order, make_worker(order))


def example(worker):
    engine = Engine(lambda engine, batch: batch)
    attach_metric(engine, "loss", "mean")
    model = torch.nn.Linear(2, 1)
    return Program(engines={"trainer": engine}, state={"model": model})


def test_a_program_is_found_by_module_and_attribute(root):
    assert list(build("user_program:build", roots=(root, root)).engines) == ["trainer"]
    assert sys.path[0] == root
    assert sys.path.count(root) == 1


def test_a_function_travels_by_value_with_what_it_closes_over():
    extra = 5
    program = build(cloudpickle.dumps(lambda worker: (setattr(worker, "extra", extra), example(worker))[1]))
    assert program.engines["trainer"].worker.extra == 5


def test_the_worker_knows_the_order_and_the_program():
    program = build(cloudpickle.dumps(example), threads=torch.get_num_threads())
    worker = program.engines["trainer"].worker
    assert (worker.config, worker.seed, worker.membership, worker.program) == ({"lr": 1}, 3, MEMBER, program)


def test_all_ranks_build_the_same_weights():
    weights = []
    for rank in (0, 1):
        torch.manual_seed(rank)
        member = Membership(generation=0, rank=rank, world_size=2)
        weights.append(build(cloudpickle.dumps(example), membership=member).state["model"].weight)
    assert torch.equal(*weights)


def test_attached_metrics_know_the_batch_and_the_world():
    program = build(cloudpickle.dumps(example))
    engine = program.engines["trainer"]
    engine.worker.batch_size = 7
    assert engine.attached["loss"].samples() == 7
    assert engine.attached["loss"].shared()


def test_what_the_driver_needs_to_reduce_is_empty_copies():
    program = build(cloudpickle.dumps(example))
    attach_metric(program.engines["trainer"], "tokens", SumMetric())
    program.engines["trainer"].attach("other", object())
    program.engines["trainer"].run([1.0])
    (metrics,) = metrics_of(program).values()
    assert [type(metric) for metric in metrics.values()] == [MeanMetric, SumMetric]
    assert not any(metric.update_called for metric in metrics.values())


def test_bytes_of_state_are_those_of_its_tensors():
    class Entry(torch.nn.Linear):
        def state_dict(self):
            return {"a": [torch.zeros(3), (torch.zeros(2, dtype=torch.int8),)], "b": {"c": torch.zeros(1)}, "d": 7}

    program = Program(engines={}, state={"model": torch.nn.Linear(2, 1), "entry": Entry(1, 1)})
    assert state_bytes(program) == {"model": 12, "entry": 18}


ERRORS = [
    (
        "no_such_module:build",
        "expected a module 'no_such_module' on this rank, received none in ROOT; install it there, or put the folder "
        "on shared storage",
    ),
    (
        "user_program.deeper:build",
        "expected a module 'user_program.deeper' on this rank, received none in ROOT; install it there, or put the "
        "folder on shared storage",
    ),
    (
        "user_program:biuld",
        "expected a function of the module user_program, received no 'biuld' there; did you mean 'build'?",
    ),
    ("user_program:number", "expected a function build(worker), received int; name one that returns a Program"),
]


@pytest.mark.parametrize(("program", "text"), ERRORS)
def test_a_program_that_is_not_there_is_an_error(root, program, text):
    with pytest.raises(ProgramError) as error:
        build(program, roots=(root,))
    assert str(error.value) == f"program {program!r}: {text.replace('ROOT', root)}"


def test_without_roots_the_search_path_is_named():
    with pytest.raises(ProgramError, match=r"received none in sys.path; "):
        build("no_such_module:build")


def test_a_module_that_can_not_import_something_keeps_its_own_error(root):
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'no_such_module_at_all'$"):
        build("user_broken:build", roots=(root,))


def test_what_returns_something_else_is_named(root):
    with pytest.raises(
        ProgramError, match=r"^user_program:wrong\(worker\): expected it to return a Program, received "
    ):
        build("user_program:wrong", roots=(root,))
    with pytest.raises(ProgramError, match=r"<lambda>\(worker\): expected it to return a Program, received NoneType; "):
        build(cloudpickle.dumps(lambda worker: None))


def test_what_the_function_raises_comes_out_as_it_is(root):
    with pytest.raises(ValueError, match=r"^no data$"):
        build("user_program:broken", roots=(root,))
