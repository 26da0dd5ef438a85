"""References to a user's functions, `module:function`: whether they exist, and loading them.

`check_target` reads source text only, so that a job file is checked without running anything of the user's;
`load_target` imports. Called by `specfile.py` and by whoever builds the program or the handlers.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

from orchestrator.errors import SpecError, explain

__all__ = ["check_target", "load_target"]

ENCODE = "save it as UTF-8, or name its encoding in its first line: # -*- coding: latin-1 -*-"
MAX_SHOWN = 8  # names of a module that an error lists


def check_target(text: str, roots: Sequence[str]) -> str | None:
    """Tell what is wrong with a reference, as far as source text shows it.

    Args:
        text: `module:function`.
        roots: folders that are searched before Python's own path.

    Returns:
        The problem in words, or None. A module whose names can't be read off its source (compiled, too deeply nested,
        with `from x import *` or its own `__getattr__`) is accepted.
    """
    module, _, name = text.partition(":")
    spec, missing = find_module(module, roots)
    if missing is not None:
        return no_module(module, missing, roots)
    if spec is None or not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
        return None if spec is None or spec.loader is not None else no_attribute(module, name, [])
    path = spec.loader.path
    try:
        with open(path, "rb") as file:
            source = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the import itself will warn
            names = top_level_names(ast.parse(source, path))
    except (MemoryError, RecursionError):  # nested beyond what the parser's stack holds: the import will tell
        return None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, SyntaxError) and "codec can't decode" in str(error.msg):
            return explain("", expected=f"the module {module}", received=f"{path}, which is not UTF-8", mend=ENCODE)
        received = word_exception(error, path)
        return explain("", expected=f"the module {module}", received=received, mend="mend that file first")
    if names is None or name.partition(".")[0] in names:
        return None
    return no_attribute(module, name, names)


def load_target(text: str, roots: Sequence[str], *, where: str = "program") -> Callable[..., object]:
    """Import the module and give the function.

    The roots are put in front of `sys.path` and stay there, for what the function imports later.

    Args:
        text: `module:function`.
        roots: folders that are searched before Python's own path.
        where: the key or argument that holds the reference, for errors.

    Raises:
        SpecError: the module is not there or fails to import, has no such name, or the name can't be called.
    """
    module_name, _, name = text.partition(":")
    sys.path[:0] = [root for root in roots if root not in sys.path]
    importlib.invalidate_caches()
    found: object = import_module(module_name, roots, where)
    for part in name.split("."):
        if not hasattr(found, part):
            known = [known for known in dir(found) if not known.startswith("_")]
            raise SpecError(f"{where}: {no_attribute(module_name, name, known)}")
        found = getattr(found, part)
    if not callable(found):
        received = f"{text}, which is of type {type(found).__name__}"
        mend = "name a function of the module"
        raise SpecError(explain(where, expected="something that can be called", received=received, mend=mend))
    return found


def import_module(name: str, roots: Sequence[str], where: str) -> ModuleType:
    """Import a user's module; whatever its own code raises is told with its place."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise SpecError(f"{where}: {no_module(name, error.name, roots)}") from None
        raise import_failed(name, where, error) from error
    except (Exception, SystemExit) as error:  # the user's code runs here, and may raise anything
        raise import_failed(name, where, error) from error


def import_failed(name: str, where: str, error: BaseException) -> SpecError:
    """Word what a module's own code raised, with the innermost line that is not Python's import machinery."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    path = f"{frames[-1].filename}:{frames[-1].lineno}" if len(frames) > 1 else ""
    received = word_exception(error, path)
    mend = "mend the module, or install what it needs"
    return SpecError(explain(where, expected=f"a module {name} that can be imported", received=received, mend=mend))


def find_module(name: str, roots: Sequence[str]) -> tuple[importlib.machinery.ModuleSpec | None, str | None]:
    """Find a module's spec without importing its parents.

    Returns:
        The spec, and None; or None, and as much of the dotted name as shows what is missing.
    """
    importlib.invalidate_caches()
    parts = name.split(".")
    search: Sequence[str] = [os.path.abspath(root) for root in roots] + sys.path
    spec = None
    for depth, part in enumerate(parts, start=1):
        # Each part is looked up as if it were a top one: a dotted name would need its parent imported.
        spec = importlib.machinery.PathFinder.find_spec(part, search)
        if spec is None and depth == 1:
            spec = find_elsewhere(part)
        if spec is None:
            return None, ".".join(parts[:depth])
        if depth < len(parts) and spec.submodule_search_locations is None:
            return None, ".".join(parts[: depth + 1])
        search = list(spec.submodule_search_locations or ())
    return spec, None


def find_elsewhere(name: str) -> importlib.machinery.ModuleSpec | None:
    """Ask Python's other finders: built-in modules, editable installs, `__main__`."""
    try:
        return importlib.util.find_spec(name)
    except ValueError:  # a module such as __main__ that has no spec
        return None


def top_level_names(tree: ast.Module) -> set[str] | None:
    """Give the names that a module binds, or None where its source does not tell."""
    names: set[str] = set()
    for node in top_level_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name):
            names.add(node.id if isinstance(node.ctx, ast.Store) else f"{node.id}()")
    names.update(name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names)
    unsure = {"*", "__getattr__", "globals()", "exec()", "vars()"}
    return None if names & unsure else {name for name in names if not name.endswith("()")}


def top_level_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what runs when the module is imported, but not into functions and classes."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield from top_level_nodes(child)


def no_module(module: str, missing: str, roots: Sequence[str]) -> str:
    """Word a module that is not there."""
    part = "" if missing == module else f" (no {missing})"
    searched = ", ".join(os.path.abspath(root) for root in roots)
    mend = f"name one that is {f'in {searched} or ' if searched else ''}on Python's path"
    return explain("", expected="a module that exists", received=f"{module}{part}", mend=mend)


def no_attribute(module: str, name: str, known: Sequence[str] | set[str]) -> str:
    """Word a name that the module does not have."""
    meant = difflib.get_close_matches(name, sorted(known), n=1)
    there = ", ".join(sorted(known)[:MAX_SHOWN])
    mend = f"did you mean {meant[0]}?" if meant else f"name one of {there}" if there else "write that function first"
    return explain("", expected=f"a function of the module {module}", received=f"no {name!r} there", mend=mend)


def word_exception(error: BaseException, path: str) -> str:
    """Word an exception in one line, with its place."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}:{error.lineno})"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" + (f" ({path})" if path else "")
