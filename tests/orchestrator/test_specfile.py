"""Job files: what is read, and how every mistake is told with its line."""

import os
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.specfile import load_spec, parse_spec

GOOD = """\
run: digits
program: examples.digits.program:build
config: {lr: 0.001, hidden: 64}
train:
  max_epochs: 5
workers: 2
"""


def problems(text: str, *sets: str, workers: int | None = None) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, sets=sets, workers=workers)
    return list(caught.value.problems)


def test_a_job_file_becomes_a_spec() -> None:
    spec = parse_spec(GOOD)
    assert (spec.run, spec.train.max_epochs, spec.workers.count) == ("digits", 5, 2)
    assert spec.config == {"lr": 0.001, "hidden": 64}


def test_all_problems_are_told_together_sorted_by_line() -> None:
    text = """\
run: ../digits
program: examples.digits.program:build
train:
  max_epoch: 5
workers: two
seed: 1
seed: 2
checkpoint:
  every: 1.5
  best:
    mode: max
bset: 1
"""
    assert problems(text) == [
        "job.yaml:1: run: expected at most 64 letters, digits, '.', '_' and '-', "
        "starting with a letter or digit, without '..', received '../digits' (str); "
        "write a name such as digits-1",
        "job.yaml:4: train.max_epoch: unknown key, did you mean max_epochs?",
        "job.yaml:5: workers: expected a whole number, or a mapping with count, received 'two' (str); "
        "write a whole number such as 2",
        "job.yaml:7: seed: duplicate key, first given on line 6; keep one",
        "job.yaml:9: checkpoint.every: expected a whole number, or a mapping with one of epochs, iterations and "
        "seconds, received 1.5 (float); write a whole number such as 2",
        "job.yaml:10: checkpoint.best.metric: expected this key, received nothing; add it: Name of the "
        "reduced metric to compare, such as validation/accuracy.",
        "job.yaml:12: bset: expected one of the keys run, program, handlers, config, train, workers, evaluate, "
        "checkpoint, recovery, guard, start_from, seed, storage, cluster, logs, received an unknown key; leave it out; "
        "settings of the program stand under config",
    ]


def test_missing_keys_are_told_at_the_line_of_their_section() -> None:
    assert problems("seed: 1\ntrain:\n  epoch_length: 3\n") == [
        "job.yaml:1: run: expected this key, received nothing; add it: Run id, the name of the run's folder in "
        "storage; the same id continues the same run.",
        "job.yaml:1: program: expected this key, received nothing; add it: module:function of build(worker) -> "
        "Program, which runs on every rank.",
        "job.yaml:1: workers: expected this key, received nothing; add it: The ranks: a whole number, or a "
        "mapping with count and what each rank needs.",
        "job.yaml:2: train: expected exactly one of max_epochs and max_iters, received a mapping; "
        "write for example max_epochs: 5",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "",
            "job.yaml: expected a mapping of job keys, received an empty file; "
            "write at least the keys run, program, train, workers",
        ),
        (
            "# only a comment\n",
            "job.yaml: expected a mapping of job keys, received an empty file; "
            "write at least the keys run, program, train, workers",
        ),
        (
            "\n- run\n",
            "job.yaml:2: expected a mapping of job keys, received a list; "
            "write at least the keys run, program, train, workers",
        ),
        (
            "digits",
            "job.yaml:1: expected a mapping of job keys, received 'digits' (str); "
            "write at least the keys run, program, train, workers",
        ),
        ("run: a\ntrain: {\n", "job.yaml:3:1: not YAML: expected the node content, but found '<stream end>' "
            "(while parsing a flow node)"),
        ("run: a: b\n", "job.yaml:1:7: not YAML: mapping values are not allowed here"),
        ("run: a\ntrain:\n\tmax_epochs: 5\n",
            "job.yaml:3:1: expected spaces, received a tab; indent with spaces"),
        ("run: *a\n", "job.yaml:1:6: not YAML: found undefined alias 'a' "),
        ("run: a\x00b\n", "job.yaml:1:7: expected printable text, received character U+0000; remove it"),
        ("---\nrun: a\n---\nrun: b\n", "job.yaml:3:1: not YAML: but found another document "
            "(expected a single document in the stream)"),
        ("run: \"\\U00110000\"\n", "job.yaml:1: not YAML: chr() arg not in range(0x110000)"),
        ("!!python/object/apply:os.getcwd []\n", "job.yaml:1: expected plain values, received the tag "
            "tag:yaml.org,2002:python/object/apply:os.getcwd; leave the tag out"),
        ("a: " + "[" * 70, "job.yaml:1: expected at most 64 levels, received deeper nesting; "
            "keep deep data in a file that the program reads"),
        ("a: &a [*a]\n", "job.yaml:1: a: expected at most 64 levels, received deeper nesting; "
            "keep deep data in a file that the program reads"),
    ],
)  # fmt: skip
def test_a_text_that_is_no_mapping_of_yaml_is_told_with_its_place(text: str, problem: str) -> None:
    assert problems(text) == [problem.rstrip()]


def test_overrides_are_laid_over_the_file() -> None:
    sets = [
        "train.max_epochs=3",
        "config.lr=1e-2",
        "checkpoint.best.metric=loss",
        "workers.cpus=2",
        "evaluate=",
    ]
    spec = parse_spec(GOOD, sets=sets, workers=4)
    assert (spec.train.max_epochs, spec.config["lr"], spec.evaluate) == (3, 0.01, None)
    assert (spec.workers.count, spec.workers.cpus) == (4, 2.0)
    assert spec.checkpoint is not None
    assert spec.checkpoint.best is not None
    assert spec.checkpoint.best.metric == "loss"


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (
            ["train.max_iters=500"],
            "--set train.max_iters=500: train: expected exactly one of max_epochs and max_iters, received max_iters "
            "beside max_epochs: 5 (int); add --set train.max_epochs=null",
        ),
        (
            ["train.max_iters=500", "train.max_epochs=3"],
            "--set train.max_epochs=3: train: expected exactly one of max_epochs and max_iters, received max_epochs "
            "beside max_iters: 500 (int); leave one of them out",
        ),
        (
            ["train={max_iters: 500, max_epochs: 3}"],
            "--set train={max_iters: 500, max_epochs: 3}: expected exactly one of max_epochs and max_iters, received "
            "max_epochs beside max_iters: 500 (int); leave one of them out",
        ),
    ],
)
def test_an_override_beside_what_it_should_replace_is_told_with_the_other_that_makes_room(
    sets: list[str], told: str
) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(GOOD, sets=sets)
    assert caught.value.problems == (told,)


def test_an_override_of_the_length_may_make_room_for_another() -> None:
    spec = parse_spec(GOOD, sets=["train.max_iters=500", "train.max_epochs=null"])
    assert (spec.train.max_epochs, spec.train.max_iters) == (None, 500)


def test_an_override_mends_a_bad_value_of_the_file() -> None:
    assert parse_spec(GOOD.replace("5", "five"), sets=["train={max_epochs: 1}"]).train.max_epochs == 1


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train.max_epoch=3", "--set train.max_epoch=3: unknown key, did you mean max_epochs?"),
        (
            "workers=two",
            "--set workers=two: expected a whole number, or a mapping with count, received 'two' (str); "
            "write a whole number such as 2",
        ),
        (
            "train={max_epoch: 3}",
            "--set train={max_epoch: 3}: train.max_epoch: unknown key, did you mean max_epochs?",
        ),
        (
            "checkpoint.best.mode=max",
            "--set checkpoint.best.mode=max: checkpoint.best.metric: expected this key, received nothing; add it: "
            "Name of the reduced metric to compare, such as validation/accuracy.",
        ),
        (
            "run.id=3",
            "--set run.id=3: expected a mapping, received 'digits' (str) at run; set run itself, or a key of a section",
        ),
        (
            "train.max_epochs",
            "--set train.max_epochs: expected KEY=VALUE, received 'train.max_epochs'; "
            "write for example --set train.max_epochs=3",
        ),
        (
            ".seed=3",
            "--set .seed=3: expected KEY=VALUE, received '.seed=3'; write for example --set train.max_epochs=3",
        ),
        (
            "config.a=[1",
            "--set config.a=[1: not YAML: expected ',' or ']', but got '<stream end>' (while parsing a flow sequence)",
        ),
        (
            "config.a={b: 1, b: 2}",
            "--set config.a={b: 1, b: 2}: config.a.b: duplicate key, first given on line 1; keep one",
        ),
    ],
)
def test_a_bad_override_is_told_by_its_text(override: str, problem: str) -> None:
    assert problems(GOOD, override) == [problem]


def test_a_bad_number_of_workers_is_told_by_its_option() -> None:
    assert problems(GOOD, workers=-1) == [
        "--workers -1: expected a number of at least 0, received -1 (int); write 0 or more"
    ]


def test_overrides_are_told_after_the_file_in_their_order() -> None:
    lines = problems(GOOD.replace("workers: 2", "workers: two"), "storage=1", "seed=a", "run")
    places = [line.split(": ")[0] for line in lines]
    assert places == ["job.yaml:6", "--set storage=1", "--set seed=a", "--set run"]


def test_functions_are_looked_up_where_roots_are_given(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import nothing_of_that_name\n\ndef build(worker): ...\n")
    job = tmp_path / "job.yaml"
    job.write_text("run: a\nprogram: program:biuld\nhandlers: no_handlers:attach\ntrain: {max_epochs: x}\nworkers: 1\n")
    with pytest.raises(SpecError) as caught:
        load_spec(job, roots=[str(tmp_path)])
    assert list(caught.value.problems) == [
        f"{job}:2: program: expected a function of the module program, received no 'biuld' there; did you mean build?",
        f"{job}:3: handlers: expected a module that exists, received no_handlers; "
        f"name one that is in {tmp_path} or on Python's path",
        f"{job}:4: train.max_epochs: expected a whole number, received 'x' (str); write a whole number such as 2",
    ]
    sets = ["program=program:build", "handlers=", "train.max_epochs=1"]
    assert load_spec(job, roots=[str(tmp_path)], sets=sets).program == "program:build"


def test_a_missing_file_is_told() -> None:
    with pytest.raises(SpecError) as caught:
        load_spec("no/such/job.yaml")
    assert (
        str(caught.value) == "no/such/job.yaml: expected a YAML job file, received no such file; give the path of one"
    )


def test_a_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: expected a YAML job file, received Is a directory; give the path of a file that you may read"
    )


def test_a_file_that_is_no_text_is_told_with_its_line(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_bytes(b"run: a\nstorage: \xff\n")
    with pytest.raises(SpecError) as caught:
        load_spec(job)
    assert str(caught.value) == f"{job}:2: expected UTF-8 text, received the byte 0xff; save it as UTF-8"


def test_a_huge_file_is_told(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(SpecError) as caught:
        load_spec(job)
    assert str(caught.value) == (
        f"{job}: expected at most 1048576 bytes, received more; keep large data in a file that the program reads"
    )


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_spec(os.fspath(job)).run == "digits"


@pytest.mark.parametrize("override", ["k\udcff=1", "config.k\udcff=1", "config.\udcff.a=1"])
def test_an_override_of_a_key_that_is_no_text_is_told(override: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec("run: a\nprogram: m:b\ntrain: {max_epochs: 1}\nworkers: 1\n", sets=[override])
    assert str(caught.value) == (
        f"--set {ascii(override)[1:-1]}: expected a key of printable text, received the character U+DCFF; remove it"
    )
