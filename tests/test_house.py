"""The house rules, on the real tree; and for each rule a small source that breaks it."""

import subprocess
from pathlib import Path

import pytest

from tests import house
from tests.house import Source

TOP = Path(__file__).parents[1]


def read(folder: str) -> list[Source]:
    return [Source(p.relative_to(TOP).as_posix(), p.read_text()) for p in sorted((TOP / folder).rglob("*.py"))]


@pytest.fixture(scope="module")
def code():
    return [*read("workers"), *read("orchestrator")]


def each(rule, sources):
    return [problem for source in sources for problem in rule(source)]


def report(problems):
    assert not problems, "\n" + "\n".join(problems)


def test_every_file_has_a_floor(code):
    report(house.without_floor(code))


def test_a_file_imports_only_from_lower_floors(code):
    report(house.upward_imports(code))


def test_imports_run_in_no_circle(code):
    report(house.circles(code))


def test_heavy_libraries_come_in_by_their_doors(code):
    report(house.closed_doors(code))


def test_ranks_do_not_know_the_driver_and_the_driver_only_what_is_shared(code):
    report(house.across_the_yard(code))


def test_files_and_functions_stay_short(code):
    report(each(house.too_long, code))


def test_every_file_name_says_something(code):
    report(each(house.empty_name, code))


def test_every_module_opens_with_a_docstring(code):
    report(each(house.without_docstring, code))


def test_a_face_holds_no_logic(code):
    report(each(house.logic_in_a_face, code))


def test_no_test_sleeps():
    tests = [source for source in read("tests") if not source.path.startswith("tests/benchmarks/")]
    report(each(house.sleeps, tests))


def test_the_top_of_the_repository_is_tidy():
    listed = subprocess.run(["git", "ls-files"], cwd=TOP, capture_output=True, text=True, check=True)
    report(house.strangers_at_the_top(path.split("/")[0] for path in listed.stdout.splitlines()))


LATE = "def f():\n    {}\n"
TYPING = "if TYPE_CHECKING:\n    {}\n"


@pytest.mark.parametrize("frame", ["{}\n", LATE, TYPING])
@pytest.mark.parametrize(
    ("statement", "target"),
    [
        ("import torch.nn", "torch.nn"),
        ("from workers.data import loader", "workers.data.loader"),
        ("from workers.engine import Engine", "workers.engine"),
        ("from . import engine", "workers.engine"),
        ("from .data.loader import GlobalLoader", "workers.data.loader"),
        ("importlib.import_module('ray')", "ray"),
    ],
)
def test_an_import_is_seen_wherever_it_stands(frame, statement, target):
    source = Source("workers/session.py", frame.format(statement))

    found = list(house.imports(source, {"workers.engine", "workers.data.loader"}))

    assert [(i.target, i.late) for i in found] == [(target, frame == LATE)]


def test_a_file_that_the_plan_does_not_know_is_reported():
    assert house.without_floor([Source("workers/novelty.py", ""), Source("workers/__init__.py", "")]) == [
        "workers/novelty.py: has no floor; add it to FLOORS in tests/floor_plan.py"
    ]


def test_an_import_from_a_higher_floor_is_reported():
    low, high = Source("workers/state.py", "import workers.engine"), Source("workers/engine.py", "")

    [problem] = house.upward_imports([low, high])

    above, below = house.floor(high.path), house.floor(low.path)
    assert problem.startswith("workers/state.py:1: imports workers.engine ")
    assert problem.endswith(f"of floor {above} from floor {below}; import from lower floors only")


def test_the_same_floor_is_open_only_inside_one_sub_folder():
    inside = [
        Source("workers/metrics/attach.py", "from .pack import x"),
        Source("workers/metrics/pack.py", ""),
    ]
    beside = [Source("workers/engine.py", "import workers.data.loader"), Source("workers/data/loader.py", "")]

    assert house.upward_imports(inside) == []
    assert len(house.upward_imports(beside)) == 1


def test_importing_the_face_from_inside_is_reported():
    face, inner = Source("workers/__init__.py", ""), Source("workers/actor.py", "from workers import Engine")

    assert "the face of a package" in house.upward_imports([face, inner])[0]


def test_a_command_may_import_late_from_anywhere_but_not_at_its_top():
    target = Source("orchestrator/cli/main.py", "")
    at_the_top = Source("orchestrator/specfile.py", "import orchestrator.cli.main")
    top, late = (Source("orchestrator/cli/ui.py", text) for text in ("import ray", LATE.format("import ray")))

    assert len(house.upward_imports([target, at_the_top])) == 1
    assert len(house.closed_doors([top])) == 1
    assert house.closed_doors([late]) == []


def test_a_circle_is_reported_even_through_a_late_import():
    one = Source("workers/metrics/one.py", "from workers.metrics import two")
    two = Source("workers/metrics/two.py", LATE.format("from workers.metrics import one"))

    assert house.circles([one]) == []
    assert house.circles([one, two])[0].startswith("circle of imports: workers.metrics.")


@pytest.mark.parametrize(
    ("path", "library", "is_open"),
    [
        ("workers/actor.py", "ray.util", True),
        ("workers/session.py", "ray.util", False),
        ("orchestrator/launch/slurm.py", "ray", True),
        ("workers/engine.py", "torch", True),
        ("workers/events.py", "torch", False),
        ("orchestrator/run.py", "torch.distributed", False),
        ("orchestrator/bus.py", "torchmetrics", False),
    ],
)
def test_a_library_comes_in_only_by_its_doors(path, library, is_open):
    assert (house.closed_doors([Source(path, f"import {library}")]) == []) is is_open


@pytest.mark.parametrize(
    ("path", "statement", "is_allowed"),
    [
        ("workers/rank.py", "from orchestrator.spec import JobSpec", False),
        ("orchestrator/bus.py", "from workers.events import Events", True),
        ("orchestrator/bus.py", "from workers import Events", False),
        ("orchestrator/bus.py", "from workers.actor import Actor", False),
        ("orchestrator/group.py", "from workers.actor import Actor", True),
        ("orchestrator/cli/run.py", LATE.format("from workers.engine import Engine"), True),
    ],
)
def test_what_crosses_between_the_packages_is_listed(path, statement, is_allowed):
    assert (house.across_the_yard([Source(path, statement)]) == []) is is_allowed


def test_a_long_file_and_a_long_function_are_reported_but_not_a_long_docstring():
    body = "    x = 1\n" * 50
    code = Source("workers/a.py", "def f():\n" + body)
    words = Source("workers/a.py", 'def f():\n    """\n' + "\n" * 99 + '    """\n')

    assert house.too_long(code) == ["workers/a.py:1: f() has 51 lines, at most 50"]
    assert house.too_long(words) == []
    assert "321 lines, at most 320" in house.too_long(Source("workers/a.py", "\n" * 321))[0]


def test_a_name_that_says_nothing_is_reported():
    assert house.empty_name(Source("workers/log_utils.py", "")) == [
        "workers/log_utils.py: 'utils' says nothing; name the noun"
    ]
    assert house.empty_name(Source("orchestrator/common/x.py", ""))
    assert house.empty_name(Source("workers/database.py", "")) == []


def test_a_module_without_a_docstring_is_reported():
    assert house.without_docstring(Source("workers/a.py", "# not a docstring\n"))
    assert house.without_docstring(Source("workers/a.py", '"""Lives here."""\n')) == []


def test_logic_in_a_face_is_reported():
    face = '"""Face."""\nfrom x import y\n__all__ = ["y"]\n_LAZY = {"z": "x"}\ndef __getattr__(name): ...\n'

    assert house.logic_in_a_face(Source("workers/__init__.py", face + TYPING.format("import z"))) == []
    for logic in ("def f(): ...", "y = compute()", "class A: ...", "for i in (): pass", "print()"):
        assert house.logic_in_a_face(Source("workers/__init__.py", logic)), logic


def test_a_sleeping_test_is_reported():
    assert house.sleeps(Source("tests/test_a.py", "import time\ntime.sleep(1)"))
    assert house.sleeps(Source("tests/test_a.py", "from time import sleep\nsleep(1)"))
    assert house.sleeps(Source("tests/test_a.py", "program = 'time.sleep(1)'")) == []


def test_a_stranger_at_the_top_is_reported():
    assert house.strangers_at_the_top(["README.md", "scripts"]) == ["scripts: not at the top of the repository"]
