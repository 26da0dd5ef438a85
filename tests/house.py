"""The house rules of the code, as small pure functions: sources in, a list of problems out.

They read the tables of `floor_plan.py` and know nothing of the disk; `test_house.py` gives them the real
tree, and for each one a tiny source that breaks it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import PurePosixPath

from tests.floor_plan import (
    DOORS,
    EMPTY_NAMES,
    FLOORS,
    IMPORTS_ANYTHING_LATE,
    LIGHT,
    MAX_FILE_LINES,
    MAX_FUNCTION_LINES,
    SHARED,
    TOP_LEVEL,
)


@dataclass(frozen=True)
class Source:
    """One Python file: its path from the top of the repository, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def package(self) -> str:
        return self.path.split("/")[0]

    @property
    def is_face(self) -> bool:
        return self.path.endswith("/__init__.py")

    @property
    def name(self) -> str:
        """Dotted name: `workers/data/loader.py` is `workers.data.loader`."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@dataclass(frozen=True)
class Import:
    """One import of one name, wherever in the file it stands."""

    source: Source
    line: int
    target: str
    late: bool

    def __str__(self) -> str:
        return f"{self.source.path}:{self.line}: imports {self.target}"


def imports(source: Source, known: Iterable[str] = ()) -> Iterator[Import]:
    """Every import of a file: at the top, in functions, under TYPE_CHECKING, by `import_module("name")`.

    `from workers import engine` imports `workers.engine` if that is one of the `known` modules.
    """
    known = set(known)
    functions = (n for n in ast.walk(source.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    late = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(source.tree):
        for target in dict.fromkeys(_targets(node, source, known)):
            yield Import(source, node.lineno, target, id(node) in late)


def _targets(node: ast.AST, source: Source, known: set[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        module = ".".join(filter(None, [*_relative_to(source, node.level), node.module]))
        inner = [f"{module}.{alias.name}" for alias in node.names]
        return [name if name in known else module for name in inner]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
        return [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return []


def _relative_to(source: Source, level: int) -> list[str]:
    return list(PurePosixPath(source.path).parts[:-level]) if level else []


def floor(path: str) -> int | None:
    """The floor of a file, or None if the plan does not know it."""
    return next((number for pattern, number in FLOORS.items() if fnmatch(path, pattern)), None)


def without_floor(sources: Iterable[Source]) -> list[str]:
    """Files that the plan does not know; a face (`__init__.py`) stands above its house and needs no floor."""
    return [
        f"{source.path}: has no floor; add it to FLOORS in tests/floor_plan.py"
        for source in sources
        if not source.is_face and floor(source.path) is None
    ]


def upward_imports(sources: list[Source]) -> list[str]:
    """Imports from the same or a higher floor, and imports of a face from inside its package."""
    by_name = {source.name: source for source in sources}
    problems = []
    for source in sources:
        for found in imports(source, by_name):
            target = by_name.get(found.target)
            if target and target.package == source.package and not source.is_face and not _may_late(found):
                problems += _upward(found, target)
    return problems


def _upward(found: Import, target: Source) -> list[str]:
    if target.is_face:
        return [f"{found}, the face of a package; import the module that defines the name"]
    here, there = floor(found.source.path), floor(target.path)
    if here is None or there is None or there < here:
        return []
    folder = PurePosixPath(target.path).parent
    if here == there and folder == PurePosixPath(found.source.path).parent and len(folder.parts) > 1:
        return []
    return [f"{found} of floor {there} from floor {here}; import from lower floors only"]


def circles(sources: list[Source]) -> list[str]:
    """The first circle of imports, if there is one; late imports count too."""
    by_name = {source.name: source for source in sources if not source.is_face}
    graph = {name: {i.target for i in imports(s, by_name)} & by_name.keys() for name, s in by_name.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return ["circle of imports: " + " <- ".join(error.args[1])]
    return []


def closed_doors(sources: list[Source]) -> list[str]:
    """Imports of a library by a file that is not one of its doors."""
    return [
        f"{found}; only these may: {', '.join(DOORS[library])}, but not {', '.join(LIGHT)}"
        for source in sources
        for found in imports(source)
        if (library := found.target.split(".")[0]) in DOORS
        and not _may_late(found)
        and (source.path in LIGHT or not any(fnmatch(source.path, door) for door in DOORS[library]))
    ]


def across_the_yard(sources: list[Source]) -> list[str]:
    """Imports from `workers` to the driver (never), and from the driver of what is not shared."""
    known = {source.name for source in sources}
    problems = []
    for source in sources:
        for found in imports(source, known):
            package = found.target.split(".")[0]
            if source.package == "workers" and package == "orchestrator":
                problems.append(f"{found}; a rank knows nothing of the driver")
            if source.package == "orchestrator" and package == "workers" and not _is_shared(found):
                problems.append(f"{found}; the driver shares only what SHARED in tests/floor_plan.py names")
    return problems


def _is_shared(found: Import) -> bool:
    rooms = [names for path, names in SHARED.items() if fnmatch(found.source.path, path)]
    return _may_late(found) or any(fnmatch(found.target, name) for names in rooms for name in names)


def _may_late(found: Import) -> bool:
    return found.late and fnmatch(found.source.path, IMPORTS_ANYTHING_LATE)


def too_long(source: Source) -> list[str]:
    """A file or a function past its limit; a function's docstring does not count."""
    problems = []
    if (lines := len(source.text.splitlines())) > MAX_FILE_LINES:
        problems.append(f"{source.path}: {lines} lines, at most {MAX_FILE_LINES}; make two nouns of it")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = _code_lines(node)
            if lines > MAX_FUNCTION_LINES:
                where = f"{source.path}:{node.lineno}: {node.name}()"
                problems.append(f"{where} has {lines} lines, at most {MAX_FUNCTION_LINES}")
    return problems


def _code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return lines


def empty_name(source: Source) -> list[str]:
    """A file or folder whose name says nothing, such as `log_utils.py`."""
    words = {word for part in PurePosixPath(source.path).with_suffix("").parts for word in part.split("_")}
    return [f"{source.path}: {word!r} says nothing; name the noun" for word in sorted(words & EMPTY_NAMES)]


def without_docstring(source: Source) -> list[str]:
    """A module that does not say what lives in it."""
    if ast.get_docstring(source.tree):
        return []
    return [f"{source.path}: does not open with a docstring that says what lives here"]


def logic_in_a_face(source: Source) -> list[str]:
    """Whatever an `__init__.py` holds besides imports, literal constants and a lazy `__getattr__`."""
    if not source.is_face:
        return []
    return [
        f"{source.path}:{node.lineno}: a face holds only imports, __all__ and a lazy __getattr__"
        for node in source.tree.body
        if not _belongs_in_a_face(node)
    ]


def _belongs_in_a_face(node: ast.stmt) -> bool:
    if isinstance(node, ast.FunctionDef):
        return node.name in ("__getattr__", "__dir__")
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test) and all(map(_belongs_in_a_face, node.body))
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return node.value is not None and _is_literal(node.value)
    return isinstance(node, ast.Import | ast.ImportFrom) or _is_docstring(node)


def _is_literal(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except ValueError:
        return False
    return True


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def sleeps(source: Source) -> list[str]:
    """Calls of `time.sleep`; a test waits for a condition."""
    return [
        f"{source.path}:{node.lineno}: sleeps; wait for a condition with tests.waiting.wait_until"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep")
    ]


def strangers_at_the_top(names: Iterable[str]) -> list[str]:
    """Files and folders at the top of the repository that do not belong there."""
    return [f"{name}: not at the top of the repository" for name in sorted({*names} - TOP_LEVEL)]
