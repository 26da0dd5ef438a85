"""What a job's values may be."""

from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ValidationError

import orchestrator.spec
from orchestrator.errors import SpecError
from orchestrator.spec import EverySpec, GuardSpec, JobSpec, WorkersSpec
from orchestrator.spec_problems import make_spec

SMALLEST: dict[str, object] = {
    "run": "digits",
    "program": "examples.digits.program:build",
    "train": {"max_epochs": 5},
    "workers": 2,
}


def problem_with(**changes: object) -> str:
    with pytest.raises(SpecError) as caught:
        make_spec(SMALLEST | changes)
    return str(caught.value)


def sections(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield kind
    named = kind.model_json_schema()["$defs"]
    yield from (getattr(orchestrator.spec, name) for name in named if name != "JsonValue")


def test_the_smallest_job_has_these_defaults() -> None:
    assert make_spec(SMALLEST).model_dump() == {
        "run": "digits",
        "program": "examples.digits.program:build",
        "handlers": None,
        "config": {},
        "train": {"max_epochs": 5, "max_iters": None, "epoch_length": None},
        "workers": {
            "count": 2,
            "spares": 0,
            "min": None,
            "max": None,
            "cpus": 1.0,
            "gpus": 0.0,
            "resources": {},
            "labels": {},
            "placement": "PACK",
        },
        "evaluate": None,
        "checkpoint": None,
        "recovery": {
            "on_loss": "recover",
            "snapshots": {"mode": "auto", "iterations": None},
            "hang_timeout": 300.0,
            "restarts": {"crash": 10, "oom": 2, "hang": 5, "network": 10, "window": 3600.0},
        },
        "guard": None,
        "start_from": None,
        "seed": 0,
        "storage": "runs",
        "cluster": {"address": None, "autoscale": False, "insecure": False, "start_timeout": 60.0},
        "logs": "plain",
    }


def test_a_whole_number_of_workers_is_short_for_count() -> None:
    assert make_spec(SMALLEST | {"workers": 0}).workers == WorkersSpec(count=0)


def test_empty_evaluate_and_checkpoint_mean_their_defaults() -> None:
    spec = make_spec(SMALLEST | {"evaluate": {}, "checkpoint": {}})
    assert spec.evaluate is not None
    assert spec.checkpoint is not None
    assert (spec.evaluate.engine, spec.evaluate.every) == ("evaluator", 1)
    assert (spec.checkpoint.every, spec.checkpoint.keep, spec.checkpoint.best) == (EverySpec(epochs=1), 3, None)
    assert spec.checkpoint.on_save_error == "stop"


def test_an_empty_guard_means_both_guards_and_null_switches_one_off() -> None:
    both, one = (make_spec(SMALLEST | {"guard": given}).guard for given in ({}, {"nan": 10, "divergence": None}))
    assert both == GuardSpec(nan=1, divergence=500)
    assert one == GuardSpec(nan=10, divergence=None)
    assert (
        problem_with(guard={"nan": 0})
        == "guard.nan: expected a number of at least 1, received 0 (int); write 1 or more"
    )


@pytest.mark.parametrize("every", [{"epochs": 2}, {"iterations": 500}, {"seconds": 0.5}])
def test_a_checkpoint_is_due_by_epochs_iterations_or_seconds(every: dict[str, float]) -> None:
    spec = make_spec(SMALLEST | {"checkpoint": {"every": every}})
    assert spec.checkpoint is not None
    assert spec.checkpoint.every.model_dump(exclude_none=True) == every


def test_a_whole_number_is_short_for_epochs() -> None:
    spec = make_spec(SMALLEST | {"checkpoint": {"every": 2}})
    assert spec.checkpoint is not None
    assert spec.checkpoint.every == EverySpec(epochs=2)


@pytest.mark.parametrize(
    ("given", "mode", "iterations"),
    [("auto", "auto", None), ("off", "off", None), ({"iterations": 50}, "auto", 50), ({}, "auto", None)],
)
def test_snapshots_are_said_in_a_word_or_with_iterations(given: object, mode: str, iterations: int | None) -> None:
    snapshots = make_spec(SMALLEST | {"recovery": {"snapshots": given}}).recovery.snapshots
    assert (snapshots.mode, snapshots.iterations) == (mode, iterations)


@pytest.mark.parametrize(
    ("given", "fewest", "most", "elastic"),
    [
        ({}, 4, 4, False),
        ({"min": 2}, 2, 4, True),
        ({"max": 8}, 4, 8, True),
        ({"min": 1, "max": 6}, 1, 6, True),
        ({"min": 4, "max": 4}, 4, 4, False),
    ],
)
def test_the_world_size_changes_only_in_a_range_that_is_given(
    given: dict[str, int], fewest: int, most: int, elastic: bool
) -> None:
    workers = make_spec(SMALLEST | {"workers": {"count": 4} | given}).workers
    assert (workers.fewest, workers.most, workers.elastic) == (fewest, most, elastic)


def test_a_run_may_start_from_another() -> None:
    spec = make_spec(SMALLEST | {"start_from": {"checkpoint": "digits@best"}})
    assert spec.start_from is not None
    assert (spec.start_from.checkpoint, list(spec.start_from.state)) == ("digits@best", ["model"])


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_spec(SMALLEST).seed = 3  # type: ignore[misc]


def test_every_key_is_described() -> None:
    bare = [
        f"{kind.__name__}.{name}"
        for kind in sections(JobSpec)
        for name, field in kind.model_fields.items()
        if not (field.description or "").endswith(".")
    ]
    assert bare == []


def test_the_schema_shows_editors_both_forms_of_workers_and_closed_sections() -> None:
    schema = JobSpec.model_json_schema()
    short, long = schema["$defs"]["WorkersSpec"]["anyOf"]
    assert (short["type"], short["minimum"]) == ("integer", 0)
    assert (long["required"], long["additionalProperties"]) == (["count"], False)
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["run", "program", "train", "workers"]


@pytest.mark.parametrize("run", ["digits", "0", "a.b_c-D", "x" * 64, "v1.", "con"])
def test_a_plain_folder_name_is_a_run_id(run: str) -> None:
    assert make_spec(SMALLEST | {"run": run}).run == run


@pytest.mark.parametrize(
    "run", ["", ".", "..", "../x", "a/b", "a..b", "/abs", "-x", "a b", "x" * 65, "a\n", "é", "a\0"]
)
def test_a_run_id_cannot_leave_the_storage_root(run: str) -> None:
    assert problem_with(run=run).startswith(
        "run: expected at most 64 letters, digits, '.', '_' and '-', starting with a letter or digit, "
        "without '..', received "
    )


def train(**limits: object) -> dict[str, object]:
    return {"train": limits}


def workers(**changes: object) -> dict[str, object]:
    return {"workers": {"count": 2} | changes}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"run": 5},
            "run: expected text, received 5 (int); put it in quotes if it looks like a number",
        ),
        (
            {"program": "examples/program.py"},
            "program: expected module:function, received 'examples/program.py' (str); "
            "write for example examples.digits.program:build",
        ),
        (
            {"handlers": "a:"},
            "handlers: expected module:function, received 'a:' (str); write for example examples.digits.program:build",
        ),
        (
            {"config": [1]},
            "config: expected a mapping, received a list; write key: value pairs",
        ),
        (
            {"config": {"layers": [1, {"x": 1j}]}},
            "config.layers[1].x: expected plain values: text, numbers, true, false, null, lists, mappings, "
            "received 1j (complex); pass other things as text, and make them in build(worker)",
        ),
        (
            train(),
            "train: expected exactly one of max_epochs and max_iters, received an empty mapping; "
            "write for example max_epochs: 5",
        ),
        (
            train(max_epochs=1, max_iters=1),
            "train: expected exactly one of max_epochs and max_iters, received a mapping; "
            "write for example max_epochs: 5",
        ),
        (train(max_epoch=1), "train.max_epoch: unknown key, did you mean max_epochs?"),
        (train(max_epochs=0), "train.max_epochs: expected a number of at least 1, received 0 (int); write 1 or more"),
        (
            train(max_epochs=2.0),
            "train.max_epochs: expected a whole number, received 2.0 (float); write a whole number such as 2",
        ),
        (
            train(max_epochs=True),
            "train.max_epochs: expected a whole number, received True (bool); write a whole number such as 2",
        ),
        ({"max-epochs": 5}, "max-epochs: unknown key, did you mean train.max_epochs?"),
        (
            {"lr": 5},
            "lr: expected one of the keys run, program, handlers, config, train, workers, evaluate, checkpoint, "
            "recovery, guard, start_from, seed, storage, cluster, logs, received an unknown key; leave it out; "
            "settings of the program stand under config",
        ),
        (
            {"workers": "two"},
            "workers: expected a whole number, or a mapping with count, received 'two' (str); "
            "write a whole number such as 2",
        ),
        ({"workers": -1}, "workers: expected a number of at least 0, received -1 (int); write 0 or more"),
        (workers(count=-1), "workers.count: expected a number of at least 0, received -1 (int); write 0 or more"),
        (
            {"workers": {}},
            "workers.count: expected this key, received nothing; add it: Ranks at the start (the world size), between "
            "min and max if given; 0: the program runs in the calling process.",
        ),
        (workers(cpus=0), "workers.cpus: expected a number greater than 0, received 0 (int); write more than 0"),
        (
            workers(gpus=1.5),
            "workers.gpus: expected a share of one GPU below 1, or a whole number of GPUs, "
            "received 1.5 (float); write for example 0.5 or 2",
        ),
        (
            workers(gpus=float("nan")),
            "workers.gpus: expected a finite number, received nan (float); write a number such as 0.5",
        ),
        (
            workers(placement="spread"),
            "workers.placement: expected PACK, SPREAD, STRICT_PACK or STRICT_SPREAD, "
            "received 'spread' (str); did you mean SPREAD?",
        ),
        (
            workers(resources={"GPU": 1}),
            "workers.resources: expected resource names other than CPU and GPU, received a mapping; "
            "use the key gpus beside resources",
        ),
        (
            workers(labels={"zone": "a b"}),
            "workers.labels: expected VALUE, !VALUE, in(A,B) or !in(A,B) for the label zone, not 'a b', received a "
            'mapping; write for example {accelerator: "in(A100,H100)"}',
        ),
        (
            workers(labels={"ray.io/node-id": "abc"}),
            "workers.labels: expected no ray.io/node-id, by which lost nodes are avoided, received a mapping; "
            "give the nodes a label of your own",
        ),
        (
            workers(count=0, spares=1),
            "workers: expected no spares where count is 0 (the calling process can't be replaced), "
            "received a mapping; write spares: 0",
        ),
        (
            {"checkpoint": {"keep": 0}},
            "checkpoint.keep: expected a number of at least 1, received 0 (int); write 1 or more",
        ),
        (
            {"checkpoint": {"every": {"epochs": 1, "seconds": 2}}},
            "checkpoint.every: expected exactly one of epochs, iterations and seconds, received a mapping; "
            "write for example every: {iterations: 500}",
        ),
        (
            {"checkpoint": {"best": {"mode": "max"}}},
            "checkpoint.best.metric: expected this key, received nothing; add it: Name of the reduced metric to "
            "compare, such as validation/accuracy.",
        ),
        (
            {"checkpoint": {"best": {"metric": "", "mode": "maximum"}}},
            "checkpoint.best.metric: expected text that is not empty, received '' (str); write it, or leave the key "
            "out\n"
            "checkpoint.best.mode: expected max or min, received 'maximum' (str); did you mean max?",
        ),
        (
            {"checkpoint": {"every": 0}},
            "checkpoint.every: expected a number of at least 1, received 0 (int); write 1 or more",
        ),
        (
            {"recovery": {"snapshots": "of"}},
            "recovery.snapshots: expected auto or off, received 'of' (str); did you mean off?",
        ),
        (
            {"recovery": {"snapshots": 50}},
            "recovery.snapshots: expected auto, off, or a mapping with iterations, received 50 (int); write for "
            "example {iterations: 50}",
        ),
        (
            {"recovery": {"snapshots": {"iterations": 0}}},
            "recovery.snapshots.iterations: expected a number of at least 1, received 0 (int); write 1 or more",
        ),
        (
            {"recovery": {"snapshots": {"mode": "off", "iterations": 5}}},
            "recovery.snapshots: expected no iterations where snapshots are off, received a mapping; write snapshots: "
            "off, or leave mode out",
        ),
        (
            {"recovery": {"on_loss": "retry"}},
            "recovery.on_loss: expected recover or stop, received 'retry' (str); did you mean recover?",
        ),
        (
            {"recovery": {"hang_timeout": 0}},
            "recovery.hang_timeout: expected a number greater than 0, received 0 (int); write more than 0",
        ),
        (
            {"recovery": {"restarts": {"crash": -1}}},
            "recovery.restarts.crash: expected a number of at least 0, received -1 (int); write 0 or more",
        ),
        ({"recovery": {"crash": 3}}, "recovery.crash: unknown key, did you mean recovery.restarts.crash?"),
        (
            workers(min=3),
            "workers: expected min <= count <= max, received a mapping; write for example {count: 4, min: 2, max: 8}",
        ),
        (
            workers(max=1),
            "workers: expected min <= count <= max, received a mapping; write for example {count: 4, min: 2, max: 8}",
        ),
        (workers(min=0), "workers.min: expected a number of at least 1, received 0 (int); write 1 or more"),
        (
            workers(count=0, max=2),
            "workers: expected neither min nor max where count is 0 (the calling process is the only rank), received a "
            "mapping; leave them out",
        ),
        ({"evaluate": None, "seed": -1}, "seed: expected a number of at least 0, received -1 (int); write 0 or more"),
        (
            {"cluster": {"autoscale": 1}},
            "cluster.autoscale: expected true or false, received 1 (int); write one of these words, without quotes",
        ),
        (
            {"cluster": {"start_timeout": 0}},
            "cluster.start_timeout: expected a number greater than 0, received 0 (int); write more than 0",
        ),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected_received_and_the_mend(
    changes: dict[str, object], text: str
) -> None:
    assert problem_with(**changes) == text


def test_the_memory_of_the_only_process_is_a_storage() -> None:
    assert make_spec(SMALLEST | {"storage": "memory://runs", "workers": 0}).storage == "memory://runs"


@pytest.mark.parametrize("gpus", [0, 0.25, 1, 2, 4.0])
def test_a_share_of_a_gpu_or_whole_gpus_are_accepted(gpus: float) -> None:
    assert make_spec(SMALLEST | workers(gpus=gpus)).workers.gpus == gpus


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            workers(resources={"memory": 5}),
            "workers.resources: expected resource names other than those that Ray keeps (CPU, GPU, memory, "
            "object_store_memory), received a mapping; leave memory out: nothing is reserved for it",
        ),
        (
            workers(cpus=0.00001),
            "workers.cpus: expected an amount of at least 0.0001, which is as finely as Ray counts, received 1e-05 "
            "(float); write for example 0.5",
        ),
        (
            workers(gpus=0.00001),
            "workers.gpus: expected an amount of at least 0.0001, which is as finely as Ray counts, received 1e-05 "
            "(float); write for example 0.5",
        ),
        (
            workers(resources={"disk": 0.00001}),
            "workers.resources.disk: expected an amount of at least 0.0001, which is as finely as Ray counts, received "
            "1e-05 (float); write for example 0.5",
        ),
        (
            {"storage": "a\0b"},
            "storage: expected a path or URL of printable characters, received 'a\\x00b' (str); write for example runs",
        ),
        (
            {"storage": "memory://runs", "workers": 2},
            "storage: expected a folder or URL that every worker reaches, received 'memory://runs' (str); write for "
            "example runs, or workers: 0",
        ),
        (
            {"workers": 100_001},
            "workers: expected a number of at most 100000, received 100001 (int); write 100000 or less",
        ),
        (
            workers(spares=10**30),
            f"workers.spares: expected a number of at most 100000, received {10**30} (int); write 100000 or less",
        ),
    ],
)
def test_a_value_that_no_cluster_or_storage_could_take_is_refused(changes: dict[str, object], text: str) -> None:
    assert problem_with(**changes) == text
