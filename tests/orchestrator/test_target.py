"""References to functions: checked from source text, loaded by import."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.target import check_target, load_target

SOURCE = '''\
"""A program that must not be imported to be checked."""
import os as operating_system
import xml.dom
from json import dumps as to_json

raise RuntimeError("imported")

def build(worker): ...
class Build: ...
first, (second, *rest) = 1, (2, 3)
annotated: int = 3
if first:
    def conditional(worker): ...
try:
    from nowhere import attempted
except ImportError:
    attempted = None
for looped in (): pass
with open("x") as opened: pass
def outer():
    global made_global
    inner = 1
escape = "\\d"
'''


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "rf_program.py").write_text(SOURCE)
    (tmp_path / "rf_good.py").write_text(
        "def build(worker): return worker\nclass Deep:\n    make = staticmethod(build)\nsize = 3\n"
    )
    (tmp_path / "rf_space" / "inner").mkdir(parents=True)
    (tmp_path / "rf_space" / "inner" / "program.py").write_text("build = len\n")
    (tmp_path / "rf_package").mkdir()
    (tmp_path / "rf_package" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (tmp_path / "rf_package" / "program.py").write_text("def build(worker): ...\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("rf_")]:
        del sys.modules[name]


def load_problem(text: str, root: Path) -> str:
    with pytest.raises(SpecError) as caught:
        load_target(text, [str(root)])
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *["build", "Build", "Build.make", "operating_system", "xml", "to_json", "first", "second", "rest"],
        *["annotated", "conditional", "attempted", "looped", "opened", "made_global"],
    ],
)
def test_a_name_that_the_source_binds_is_accepted_without_importing(name: str, root: Path) -> None:
    assert check_target(f"rf_program:{name}", [str(root)]) is None
    assert "rf_program" not in sys.modules


@pytest.mark.parametrize("name", ["inner", "os", "dumps", "worker", "nothing"])
def test_a_name_that_the_source_does_not_bind_is_told(name: str, root: Path) -> None:
    problem = check_target(f"rf_program:{name}", [str(root)])
    assert problem is not None
    assert problem.startswith(f"expected a function of the module rf_program, received no '{name}' there")


def test_a_misspelt_name_gets_the_one_that_was_meant(root: Path) -> None:
    assert check_target("rf_program:biuld", [str(root)]) == (
        "expected a function of the module rf_program, received no 'biuld' there; did you mean build?"
    )


@pytest.mark.parametrize(
    "source",
    ["from json import *", "def __getattr__(name): ...", "globals()['build'] = len", "exec('build = len')"],
)
def test_a_module_whose_names_cannot_be_told_is_accepted(source: str, root: Path) -> None:
    (root / "rf_unsure.py").write_text(source)
    assert check_target("rf_unsure:anything", [str(root)]) is None


def test_parents_are_not_imported(root: Path) -> None:
    assert check_target("rf_package.program:build", [str(root)]) is None
    assert check_target("rf_space.inner.program:build", [str(root)]) is None
    assert [name for name in sys.modules if name.startswith("rf_")] == []


@pytest.mark.parametrize("text", ["sys:exit", "json:dumps", "itertools:chain"])
def test_modules_of_python_are_found(text: str) -> None:
    assert check_target(text, []) is None


@pytest.mark.parametrize(
    ("module", "received"),
    [
        ("rf_missing", "rf_missing"),
        ("rf_package.missing", "rf_package.missing"),
        ("rf_missing.program", "rf_missing.program (no rf_missing)"),
        ("rf_good.build.more", "rf_good.build.more (no rf_good.build)"),
    ],
)
def test_a_module_that_is_not_there_is_told_with_the_searched_roots(module: str, received: str, root: Path) -> None:
    assert check_target(f"{module}:build", [str(root)]) == (
        f"expected a module that exists, received {received}; name one that is in {root} or on Python's path"
    )


def test_a_folder_without_source_has_no_functions(root: Path) -> None:
    assert check_target("rf_space.inner:build", [str(root)]) == (
        "expected a function of the module rf_space.inner, received no 'build' there; write that function first"
    )


def test_source_that_does_not_parse_is_told_with_its_line(root: Path) -> None:
    (root / "rf_broken.py").write_text("x = 1\ndef build(:\n")
    assert check_target("rf_broken:build", [str(root)]) == (
        f"expected the module rf_broken, received SyntaxError: invalid syntax ({root}/rf_broken.py:2); "
        "mend that file first"
    )


def test_a_function_is_loaded_from_a_root(root: Path) -> None:
    build = load_target("rf_good:build", [str(root)])
    assert build("worker") == "worker"
    assert load_target("rf_good:Deep.make", [str(root)]) is build
    assert load_target("rf_space.inner.program:build", [str(root)]) is len
    assert sys.path.count(str(root)) == 1


def test_roots_are_searched_in_their_order_before_pythons_path(root: Path) -> None:
    (root / "second").mkdir()
    (root / "second" / "rf_good.py").write_text("build = 3\n")
    assert callable(load_target("rf_good:build", [str(root), str(root / "second")]))
    assert sys.path[:2] == [str(root), str(root / "second")]


def test_loading_tells_a_module_that_is_not_there(root: Path) -> None:
    assert load_problem("rf_missing.program:build", root) == (
        "program: expected a module that exists, received rf_missing.program (no rf_missing); "
        f"name one that is in {root} or on Python's path"
    )


def test_loading_tells_a_name_that_is_not_there(root: Path) -> None:
    assert load_problem("rf_good:biuld", root) == (
        "program: expected a function of the module rf_good, received no 'biuld' there; did you mean build?"
    )


def test_loading_tells_what_cannot_be_called(root: Path) -> None:
    assert load_problem("rf_good:size", root) == (
        "program: expected something that can be called, received rf_good:size, which is of type int; "
        "name a function of the module"
    )


@pytest.mark.parametrize(
    ("source", "received"),
    [
        ("\n1 / 0\n", "ZeroDivisionError: division by zero ({path}:2)"),
        ("import rf_nowhere\n", "ModuleNotFoundError: No module named 'rf_nowhere' ({path}:1)"),
        ("raise SystemExit(3)\n", "SystemExit: 3 ({path}:1)"),
        ("\ndef build(:\n", "SyntaxError: invalid syntax ({path}:2)"),
    ],
)
def test_loading_tells_what_the_module_raised_and_where(source: str, received: str, root: Path) -> None:
    path = root / "rf_raises.py"
    path.write_text(source)
    assert load_problem("rf_raises:build", root) == (
        f"program: expected a module rf_raises that can be imported, received {received.format(path=path)}; "
        "mend the module, or install what it needs"
    )


def test_the_key_of_the_reference_can_be_named(root: Path) -> None:
    with pytest.raises(SpecError, match=r"^handlers: expected a module that exists"):
        load_target("rf_missing:attach", [str(root)], where="handlers")


@pytest.mark.parametrize("source", ["x = " + "-" * 100_000 + "1\n", "x = " + "+".join("1" * 50_000) + "\n"])
def test_a_module_that_is_too_deep_to_be_read_is_accepted(source: str, root: Path) -> None:
    (root / "rf_deep.py").write_text(source)
    assert check_target("rf_deep:build", [str(root)]) is None


def test_source_that_is_not_utf_8_is_told_with_what_to_do(root: Path) -> None:
    (root / "rf_latin.py").write_bytes(b"name = 'caf\xe9'\ndef build(worker): ...\n")
    problem = check_target("rf_latin:build", [str(root)])
    assert problem == (
        f"expected the module rf_latin, received {root}/rf_latin.py, which is not UTF-8; save it as UTF-8, or name its "
        "encoding in its first line: # -*- coding: latin-1 -*-"
    )
    (root / "rf_latin.py").write_bytes(b"# -*- coding: latin-1 -*-\nname = 'caf\xe9'\ndef build(worker): ...\n")
    assert check_target("rf_latin:build", [str(root)]) is None
