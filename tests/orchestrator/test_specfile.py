"""Job files: what is read, and how every mistake is told with its line."""

import math
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.spec import JobSpec
from orchestrator.specfile import dump_spec, load_spec, parse_spec

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


def config_of(values: str) -> object:
    return parse_spec(GOOD.replace("{lr: 0.001, hidden: 64}", f"{{value: {values}}}")).config["value"]


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
        "job.yaml:9: checkpoint.every: expected a whole number, received 1.5 (float); "
        "write a whole number such as 2",
        "job.yaml:10: checkpoint.best.metric: missing key, add it: Name of the reduced metric to compare, "
        "such as validation/accuracy.",
        "job.yaml:12: bset: unknown key; the keys here are run, program, handlers, config, train, workers, "
        "evaluate, checkpoint, seed, storage, cluster",
    ]


def test_missing_keys_are_told_at_the_line_of_their_section() -> None:
    assert problems("seed: 1\ntrain:\n  epoch_length: 3\n") == [
        "job.yaml:1: run: missing key, add it: Run id, the name of the run's folder in storage; "
        "the same id continues the same run.",
        "job.yaml:1: program: missing key, add it: module:function of build(worker) -> Program, "
        "which runs on every rank.",
        "job.yaml:1: workers: missing key, add it: The ranks: a whole number, or a mapping with count and "
        "what each rank needs.",
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
        ("run: a\x00b\n", "job.yaml:1:7: expected printable text, received character U+0000"),
        ("---\nrun: a\n---\nrun: b\n", "job.yaml:3:1: not YAML: but found another document "
            "(expected a single document in the stream)"),
        ("run: \"\\U00110000\"\n", "job.yaml:1: not YAML: chr() arg not in range(0x110000)"),
        ("!!python/object/apply:os.getcwd []\n", "job.yaml:1: expected plain values, received the tag "
            "tag:yaml.org,2002:python/object/apply:os.getcwd"),
        ("a: " + "[" * 70, "job.yaml:1: expected at most 64 levels, received deeper nesting"),
        ("a: &a [*a]\n", "job.yaml:1: a: expected at most 64 levels, received deeper nesting"),
    ],
)  # fmt: skip
def test_a_text_that_is_no_mapping_of_yaml_is_told_with_its_place(text: str, problem: str) -> None:
    assert problems(text) == [problem.rstrip()]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            "config: {a: !!python/name:os.system x}",
            "job.yaml:3: config.a: expected plain values, "
            "received the tag tag:yaml.org,2002:python/name:os.system",
        ),
        (
            "config: {a: 1, a: 2}",
            "job.yaml:3: config.a: duplicate key, first given on line 3; keep one",
        ),
        (
            "config: {<<: {a: 1}}",
            "job.yaml:3: config: expected a key, received a merge key <<; write the keys out",
        ),
        (
            "config: {1: a}",
            "job.yaml:3: config: expected a key that is text, received '1' (int); put it in quotes",
        ),
        (
            "config: {[1]: a}",
            "job.yaml:3: config: expected a key that is text, received a mapping or list as key",
        ),
        (
            "config: {a: !!int x}",
            "job.yaml:3: config.a: expected text of the tag !!int, received 'x'",
        ),
        (
            "config: {a: [0, 1e999]}",
            "job.yaml:3: config.a[1]: expected a number that a float can hold, received 1e999",
        ),
        (
            'config: {a: "\\ud800"}',
            "job.yaml:3: config.a: expected text, received '\\ud800', which is not Unicode",
        ),
        (
            f"config: {{a: {'9' * 200}}}",
            "job.yaml:3: config.a: expected a number of at most 100 characters, received 200 characters",
        ),
    ],
)
def test_a_value_that_is_not_plain_is_told_once_with_its_line(line: str, problem: str) -> None:
    assert problems(GOOD.replace("config: {lr: 0.001, hidden: 64}", line)) == [problem]


def test_a_billion_laughs_end_early() -> None:
    rows = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    rows += [
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    assert problems("\n".join(rows)) == [
        "job.yaml:1: e: expected at most 50000 values, an alias counted each time it is used, received more; "
        "keep large data in a file that the program reads"
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E+2", 100.0),
        ("-.5", -0.5),
        ("5.", 5.0),
        (".inf", math.inf),
        ("010", 10),
        ("0o10", 8),
        ("0xff", 255),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
    ],
)
def test_values_are_what_they_look_like(text: str, value: object) -> None:
    found = config_of(text)
    assert (found, type(found)) == (value, type(value))


def test_an_alias_repeats_a_value() -> None:
    assert config_of("{a: &x {b: 1}, c: *x}") == {"a": {"b": 1}, "c": {"b": 1}}


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
            "--set checkpoint.best.mode=max: checkpoint.best.metric: missing key, add it: "
            "Name of the reduced metric to compare, such as validation/accuracy.",
        ),
        (
            "run.id=3",
            "--set run.id=3: expected a mapping, received 'digits' (str) at run",
        ),
        (
            "train.max_epochs",
            "--set train.max_epochs: expected KEY=VALUE, received 'train.max_epochs'; "
            "write for example --set train.max_epochs=3",
        ),
        (
            ".seed=3",
            "--set .seed=3: expected KEY=VALUE, received '.seed=3'; "
            "write for example --set train.max_epochs=3",
        ),
        (
            "config.a=[1",
            "--set config.a=[1: not YAML: expected ',' or ']', but got '<stream end>' "
            "(while parsing a flow sequence)",
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
    assert problems(GOOD, workers=-1) == ["--workers -1: expected a number of at least 0, received -1 (int)"]


def test_overrides_are_told_after_the_file_in_their_order() -> None:
    lines = problems(GOOD.replace("workers: 2", "workers: two"), "storage=1", "seed=a", "run")
    places = [line.split(": ")[0] for line in lines]
    assert places == ["job.yaml:6", "--set storage=1", "--set seed=a", "--set run"]


def test_functions_are_looked_up_where_roots_are_given(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import nothing_of_that_name\n\ndef build(worker): ...\n")
    job = tmp_path / "job.yaml"
    job.write_text(
        "run: a\nprogram: program:biuld\nhandlers: handlers:attach\ntrain: {max_epochs: x}\nworkers: 1\n"
    )
    with pytest.raises(SpecError) as caught:
        load_spec(job, roots=[str(tmp_path)])
    assert list(caught.value.problems) == [
        f"{job}:2: program: expected a function of the module program, received no 'biuld' there; "
        "did you mean build?",
        f"{job}:3: handlers: expected a module that exists, received handlers; "
        f"searched in {tmp_path} and Python's path",
        f"{job}:4: train.max_epochs: expected a whole number, received 'x' (str); "
        "write a whole number such as 2",
    ]
    sets = ["program=program:build", "handlers=", "train.max_epochs=1"]
    assert load_spec(job, roots=[str(tmp_path)], sets=sets).program == "program:build"


def test_a_missing_file_is_told() -> None:
    with pytest.raises(SpecError) as caught:
        load_spec("no/such/job.yaml")
    assert str(caught.value) == "no/such/job.yaml: expected a YAML job file, received no such file"


def test_a_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path)
    assert str(caught.value) == f"{tmp_path}: expected a YAML job file, received Is a directory"


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
        f"{job}: expected at most 1048576 bytes, received more; "
        "keep large data in a file that the program reads"
    )


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_spec(os.fspath(job)).run == "digits"


tricky = ["1e-3", "on", "true", "0x1", "~", "", "<<", "1:30", " x", "a\n\tb", "\x85", "\ufeff"]
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(tricky)
)
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(config=st.dictionaries(st.text(), plain, max_size=4))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_spec_written_as_yaml_reads_back_equal(config: dict[str, object]) -> None:
    spec = JobSpec.model_validate(parse_spec(GOOD).model_dump() | {"config": config})
    assert parse_spec(dump_spec(spec)) == spec


PIECES = [
    *"-?:,[]{}#&*!|>'\"%@` \n\t\r\0\\~<=.0123456789\x85\u2028\ufeff\ud800",
    *[
        "\n  ",
        "- ",
        ": ",
        "? ",
        "<<: ",
        "&a ",
        "*a",
        "|2-\n",
        ">+\n",
        "---\n",
        "...\n",
        "0x",
        "1e999",
        "-.inf",
    ],
    *["!!int ", "!!set ", "!<x>", "!!python/object/apply:os.abort []", "%YAML 1.1\n---\n", "%TAG ! x\n"],
    *['"\\xZZ"', '"\\uD800"', '"\\U00FFFFFF"', "9" * 5000, "[" * 70],
    *["train: ", "workers: ", "config: ", "max_epochs: ", *GOOD.splitlines(keepends=True)],
]
hostile = st.lists(st.sampled_from(PIECES), max_size=25).map("".join) | st.text()


def told(text: str, *sets: str) -> tuple[str, ...]:
    try:
        parse_spec(text, sets=sets)
    except SpecError as error:
        return error.problems
    return ("none",)


@given(text=hostile)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_the_file_holds_only_a_spec_error_comes_out(text: str) -> None:
    assert all(told(text))
    assert all(told(GOOD + text))


@given(text=hostile)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_an_override_holds_only_a_spec_error_comes_out(text: str) -> None:
    assert all(told(GOOD, text))
    assert all(told(GOOD, f"config.a={text}"))
