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
    model = worker.prepare(torch.nn.Linear(2, 1))
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


def test_a_state_that_holds_itself_is_no_trap():
    class Ring:
        def state_dict(self):
            ring = {"w": torch.zeros(3)}
            ring["me"] = ring
            return ring

        def load_state_dict(self, state):
            raise AssertionError

    assert state_bytes(Program(engines={}, state={"ring": Ring()}))["ring"] >= 12


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


# ---------------------------------------------------------------- ranks that would train apart
ALONE = Membership(generation=0, rank=0, world_size=1)
FIRST = Membership(generation=0, rank=0, world_size=2)


def with_state(make, **data):
    def build(worker):
        engines = {name: Engine(lambda engine, batch: batch) for name in ("trainer", "evaluator")}
        return Program(engines=engines, state={"model": make(worker)}, data=data)

    return cloudpickle.dumps(build)


def frozen(worker):
    return torch.nn.Linear(2, 1).requires_grad_(False)


def within(worker):
    return torch.nn.Sequential(worker.prepare(torch.nn.Linear(2, 1)), torch.nn.ReLU())


def part(worker):
    return worker.prepare(torch.nn.Sequential(torch.nn.Linear(2, 1)))[0]


def forgotten(worker):
    return torch.nn.Linear(2, 1)


def test_a_model_that_was_not_prepared_is_refused_where_ranks_train_it_together():
    with pytest.raises(ProgramError) as error:
        build(with_state(forgotten))
    assert str(error.value) == (
        "with_state.<locals>.build(worker): state['model']: expected a model that worker.prepare returned, which 2 "
        "ranks train as one, received Linear with the trainable parameter 'weight' of its own; write model = "
        "worker.prepare(model), freeze it with requires_grad_(False), or leave it out of `state`"
    )


@pytest.mark.parametrize("make", [frozen, within, part, lambda worker: worker.prepare(forgotten(worker))])
def test_models_that_ranks_train_as_one_or_not_at_all_are_accepted(make):
    build(with_state(make))


def test_a_rank_alone_may_leave_its_model_as_it_is():
    build(with_state(forgotten), membership=ALONE)


def loader_of(**options):
    return torch.utils.data.DataLoader(range(4), **options)


def told(caplog, data, membership=FIRST):
    build(with_state(frozen, **data), membership=membership)
    return [record.getMessage() for record in caplog.records if record.name == "workers.building"]


@pytest.mark.parametrize("options", [{}, {"shuffle": True, "batch_size": 2}])
def test_data_that_every_rank_reads_whole_is_told_once(caplog, options):
    assert told(caplog, {"trainer": loader_of(**options), "evaluator": [1]}) == [
        "data['trainer']: every one of 2 ranks reads all of it; use worker.loader, which gives each rank its share"
    ]


def shared():
    return torch.utils.data.distributed.DistributedSampler(range(4), num_replicas=2, rank=0)


@pytest.mark.parametrize(
    ("data", "membership"),
    [
        ({"trainer": loader_of()}, ALONE),
        ({"trainer": loader_of()}, MEMBER),
        ({"trainer": loader_of(sampler=shared())}, FIRST),
        ({"trainer": loader_of(batch_sampler=[[0], [1]])}, FIRST),
        ({"trainer": [1, 2], "evaluator": None}, FIRST),
    ],
)
def test_data_that_may_be_shared_and_other_ranks_are_not_told_of(caplog, data, membership):
    assert told(caplog, data, membership) == []
