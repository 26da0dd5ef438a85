"""YAML text: what its values are, what is refused, and that nothing but a SpecError ever comes out."""

import math

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.spec import JobSpec
from orchestrator.specfile import dump_spec, parse_spec

GOOD = """\
run: digits
program: examples.digits.program:build
config: {value: 1}
train: {max_epochs: 5}
workers: 2
"""


def told(text: str, *sets: str) -> tuple[str, ...]:
    try:
        parse_spec(text, sets=sets)
    except SpecError as error:
        return error.problems
    return ("none",)


def config_of(values: str) -> object:
    return parse_spec(GOOD.replace("{value: 1}", f"{{value: {values}}}")).config["value"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            "config: {a: !!python/name:os.system x}",
            "job.yaml:3: config.a: expected plain values, received the tag tag:yaml.org,2002:python/name:os.system; "
            "leave the tag out",
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
            "job.yaml:3: config: expected a key that is text, received a mapping or list as key; "
            "write a word before the colon",
        ),
        (
            "config: {a: !!int x}",
            "job.yaml:3: config.a: expected text of the tag !!int, received 'x'; leave the tag out",
        ),
        (
            "config: {a: [0, 1e999]}",
            "job.yaml:3: config.a[1]: expected a number that a float can hold, received 1e999; "
            "write a smaller one, or .inf",
        ),
        (
            'config: {a: "\\ud800"}',
            "job.yaml:3: config.a: expected text, received '\\ud800', which is not Unicode; remove the escape",
        ),
        (
            f"config: {{a: {'9' * 200}}}",
            "job.yaml:3: config.a: expected a number of at most 100 characters, received 200 characters; "
            "put it in quotes if it is text",
        ),
    ],
)
def test_a_value_that_is_not_plain_is_told_once_with_its_line(line: str, problem: str) -> None:
    assert told(GOOD.replace("config: {value: 1}", line)) == (problem,)


def test_a_billion_laughs_end_early() -> None:
    rows = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    rows += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    assert told("\n".join(rows)) == (
        "job.yaml:1: e: expected at most 20000 values, an alias counted each time it is used, received more; "
        "keep large data in a file that the program reads",
    )


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
@example(config={"<<": "<<", "1e-3": "1e-3", "\x85": "\x85"})
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
