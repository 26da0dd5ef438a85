"""YAML text to plain values with the line of each: safe, bounded, by the rules of YAML 1.2's core schema.

Numbers are what they look like (`1e-3` is a float, `1:30` is text), only `true` and `false` are booleans,
dates are text. Not read: tags, merge keys, keys that are not text. What a key means is not known here.
Called by `specfile.py`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import NoReturn

import yaml
from pydantic import JsonValue

from orchestrator.errors import explain

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_VALUES",
    "Document",
    "Path",
    "Problem",
    "Unreadable",
    "dump",
    "read",
]

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_VALUES = 20_000  # which take half a second to read
MAX_NUMBER = 100  # characters; longer ones are slow to convert and mean nothing to a training job

TAG = "tag:yaml.org,2002:"

Path = tuple[str | int, ...]

RESOLVERS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong, and where: the line (from 1), for a syntax error also the column."""

    line: int
    path: Path
    text: str
    column: int | None = None


class Unreadable(Exception):  # noqa: N818 - says that reading stops here; never leaves `specfile.py`
    """The text can't be read any further."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Document:
    """A text's value, the line of every path in it, and the problems that did not stop the reading."""

    value: JsonValue
    lines: dict[Path, int]
    problems: list[Problem]


def read(text: str) -> Document:
    """Read one YAML document.

    Args:
        text: the whole text; at most MAX_BYTES are expected, which the caller checks before decoding.

    Returns:
        The document; an empty text has the value None.

    Raises:
        Unreadable: the text is not YAML, too deep or too large.
    """
    node = compose(text)
    reader = Reader()
    value = None if node is None else reader.value(node, ())
    return Document(value, reader.lines, reader.problems)


def dump(value: JsonValue) -> str:
    """Write a value so that `read` gives it back exactly."""
    return str(yaml.dump(value, Dumper=PlainDumper, sort_keys=False, width=100))


class BoundedLoader(yaml.SafeLoader):
    """PyYAML's parser with this module's bounds and number rules; only its `get_single_node` is used."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own mutable table, replaced as a whole
    depth = 0
    count = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose one node unless it is too deep or one too many."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self.depth += 1
        self.count += 1
        check_bounds(self.depth, self.count, mark.line + 1, ())
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class PlainDumper(yaml.SafeDumper):
    """PyYAML's writer with the same number rules, so that text which looks like a number gets quotes."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - as above

    def ignore_aliases(self, data: object) -> bool:
        """Write every value out."""
        return True


for kind, (pattern, starts) in RESOLVERS.items():
    for table in (BoundedLoader, PlainDumper):
        table.add_implicit_resolver(f"{TAG}{kind}", re.compile(rf"(?:{pattern})\Z"), starts)
PlainDumper.add_implicit_resolver(f"{TAG}merge", re.compile(r"<<\Z"), ["<"])


def check_bounds(depth: int, count: int, line: int, path: Path) -> None:
    """Stop a text that would eat the stack or the memory."""
    if depth > MAX_DEPTH:
        mend = "keep deep data in a file that the program reads"
        text = explain("", expected=f"at most {MAX_DEPTH} levels", received="deeper nesting", mend=mend)
        raise Unreadable(Problem(line=line, path=path[:1], text=text))
    if count > MAX_VALUES:
        text = explain(
            "",
            expected=f"at most {MAX_VALUES} values, an alias counted each time it is used",
            received="more",
            mend="keep large data in a file that the program reads",
        )
        raise Unreadable(Problem(line=line, path=path[:1], text=text))


def compose(text: str) -> yaml.Node | None:
    """Parse the text to PyYAML's nodes; whatever its scanner trips over becomes `Unreadable`."""
    try:
        loader = BoundedLoader(text)
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise Unreadable(syntax_problem(error, text)) from error
    except yaml.reader.ReaderError as error:
        line, column = position(text, error.position)
        character = f"character U+{ord(text[error.position]):04X}"
        problem = explain("", expected="printable text", received=character, mend="remove it")
        raise Unreadable(Problem(line=line, column=column, path=(), text=problem)) from error
    except (ValueError, OverflowError) as error:  # escapes and directives with numbers out of range
        raise Unreadable(Problem(line=1, path=(), text=f"not YAML: {error}")) from error


def syntax_problem(error: yaml.MarkedYAMLError, text: str) -> Problem:
    """Word an error of PyYAML's parser."""
    mark = error.problem_mark or error.context_mark
    line, column = (1, 1) if mark is None else (mark.line + 1, mark.column + 1)
    if mark is not None and text[mark.index : mark.index + 1] == "\t":
        problem = explain("", expected="spaces", received="a tab", mend="indent with spaces")
    else:
        context = f" ({error.context})" if error.context else ""
        problem = f"not YAML: {error.problem or 'unreadable'}{context}"
    return Problem(line=line, column=column, path=(), text=problem)


def position(text: str, index: int) -> tuple[int, int]:
    """Give line and column, both from 1, of a character."""
    return text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)


class Refused(Exception):  # noqa: N818 - says that one value is refused; never leaves this file
    """One value can't be read; the reading goes on after it."""


def refuse(expected: str, received: str, mend: str) -> NoReturn:
    """Refuse one value or key."""
    raise Refused(explain("", expected=expected, received=received, mend=mend))


@dataclass
class Reader:
    """Turns nodes into values, noting the line of each path and what is wrong on the way."""

    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    count: int = 0

    def value(self, node: yaml.Node, path: Path) -> JsonValue:
        """Give the plain value of a node, None for a refused one.

        An alias that contains itself ends at the bound on depth.
        """
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self.count += 1
        check_bounds(len(path) + 1, self.count, line, path)
        if isinstance(node, yaml.MappingNode) and node.tag == f"{TAG}map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{TAG}seq":
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        try:
            return scalar(node)
        except Refused as refused:
            self.problems.append(Problem(line=line, path=path, text=str(refused)))
            return None

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, JsonValue]:
        """Read a mapping; a wrong or repeated key is noted and left out."""
        given: dict[str, JsonValue] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            try:
                key = key_of(key_node)
            except Refused as refused:
                self.problems.append(Problem(line=line, path=path, text=str(refused)))
                continue
            here = (*path, key)
            if key in given:
                text = f"duplicate key, first given on line {self.lines[here]}; keep one"
                self.problems.append(Problem(line=line, path=here, text=text))
                continue
            self.lines[here] = line
            given[key] = self.value(value_node, here)
        return given


def key_of(node: yaml.Node) -> str:
    """Read a key, which must be text; a merge key is none of ours."""
    if not isinstance(node, yaml.ScalarNode):
        refuse("a key that is text", "a mapping or list as key", "write a word before the colon")
    if node.value == "<<" and node.style is None:
        refuse("a key", "a merge key <<", "write the keys out")
    if node.tag != f"{TAG}str":
        shown = node.value[:60]
        refuse("a key that is text", f"{shown!r} ({node.tag.removeprefix(TAG)})", "put it in quotes")
    return encodable(node.value)


def scalar(node: yaml.Node) -> JsonValue:
    """Convert text by its tag, which the resolvers above gave it (or the user, as in `!!str 5`)."""
    kind, text = node.tag.removeprefix(TAG), str(node.value)
    if not isinstance(node, yaml.ScalarNode) or (kind != "str" and kind not in RESOLVERS):
        refuse("plain values", f"the tag {node.tag[:60]}", "leave the tag out")
    if kind == "str":
        return encodable(text)
    if not re.fullmatch(RESOLVERS[kind][0], text):
        refuse(f"text of the tag !!{kind}", repr(text[:60]), "leave the tag out")
    if kind == "null":
        return None
    return text.lower() == "true" if kind == "bool" else number(text, kind)


def number(text: str, kind: str) -> int | float:
    """Convert a number; one that no float can hold is refused instead of becoming infinite."""
    if len(text) > MAX_NUMBER:
        refuse(
            f"a number of at most {MAX_NUMBER} characters", f"{len(text)} characters", "put it in quotes if it is text"
        )
    if kind == "int":
        return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)
    named = text.lower().lstrip("+-") in (".inf", ".nan")
    value = float(text.replace(".", "", 1) if named else text)
    if math.isinf(value) and not named:
        refuse("a number that a float can hold", text, "write a smaller one, or .inf")
    return value


def encodable(text: str) -> str:
    """Accept text unless an escape smuggled half a surrogate pair in, which no file could hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        refuse("text", f"{text[:60]!a}, which is not Unicode", "remove the escape")
    return text
