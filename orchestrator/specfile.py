"""YAML job file to `JobSpec`, and back: every problem of a file in one error, each with its line.

Reads the file, lays `--set` values over it, asks `spec_problems.py` what is wrong and `target.py` whether the
named functions exist, and puts `job.yaml:7:` or `--set KEY=VALUE:` in front. Called by the CLI and by
`Orchestrator.from_spec`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue, ValidationError

from orchestrator.errors import SpecError, explain
from orchestrator.spec import JobSpec
from orchestrator.spec_problems import dotted, problems_of, show
from orchestrator.target import check_target
from orchestrator.yaml_text import MAX_BYTES, Document, Path, Problem, Unreadable, dump, read

__all__ = ["dump_spec", "load_spec", "parse_spec"]


def load_spec(
    path: str | os.PathLike[str],
    *,
    sets: Sequence[str] = (),
    workers: int | None = None,
    roots: Sequence[str] | None = None,
) -> JobSpec:
    """Read a job file.

    Args:
        path: the YAML file; at most 1 MiB, UTF-8.
        sets: overrides as given to `--set`, such as `train.max_epochs=3`; the value is YAML, empty: null.
        workers: override of the number of ranks, as given to `--workers`.
        roots: folders in which `program` and `handlers` are looked up, not imported; None: no looking up.

    Raises:
        SpecError: with all problems of the file, sorted by line, those of overrides after them.
    """
    return parse_spec(read_file(path), where=os.fspath(path), sets=sets, workers=workers, roots=roots)


def parse_spec(
    text: str,
    *,
    where: str = "job.yaml",
    sets: Sequence[str] = (),
    workers: int | None = None,
    roots: Sequence[str] | None = None,
) -> JobSpec:
    """Read a job from the text of a job file; `where` names the text in errors. See `load_spec`."""
    draft = Draft.of(text, where)
    for override in sets:
        draft.set(override)
    if workers is not None:
        draft.labels.append(f"--workers {workers}")
        draft.put(("workers", "count"), workers, draft.labels[-1])
    return draft.finish(roots)


def dump_spec(spec: JobSpec) -> str:
    """Write a spec as YAML from which `parse_spec` makes an equal one."""
    return dump(spec.model_dump())


def read_file(path: str | os.PathLike[str]) -> str:
    """Read the file's text, within the bound."""
    where = os.fspath(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        mend = "give the path of one"
        raise SpecError(explain(where, expected="a YAML job file", received="no such file", mend=mend)) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        mend = "give the path of a file that you may read"
        raise SpecError(explain(where, expected="a YAML job file", received=str(reason or error), mend=mend)) from None
    if len(data) > MAX_BYTES:
        mend = "keep large data in a file that the program reads"
        raise SpecError(explain(where, expected=f"at most {MAX_BYTES} bytes", received="more", mend=mend))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"the byte 0x{data[error.start]:02x}"
        text = explain(f"{where}:{line}", expected="UTF-8 text", received=byte, mend="save it as UTF-8")
        raise SpecError(text) from None


@dataclass
class Draft:
    """A job on its way to a spec: its values so far, where each came from, and what is wrong with it."""

    where: str
    data: dict[str, JsonValue]
    origins: dict[Path, int | str]  # a line of the file, or the override that set the value
    problems: list[tuple[int | str, Path, str]]
    labels: list[str] = field(default_factory=list)  # of the overrides, in their order

    @classmethod
    def of(cls, text: str, where: str) -> Draft:
        """Start from a file's text, whose top must be a mapping."""
        try:
            document = read(text)
        except Unreadable as stop:
            raise SpecError(place_of(stop.problem, where)) from None
        if isinstance(document.value, dict):
            problems = [(problem.line, problem.path, problem.text) for problem in document.problems]
            return cls(where, document.value, dict(document.lines), list(problems))
        raise SpecError(top_problem(document, where))

    def set(self, override: str) -> None:
        """Lay one `KEY=VALUE` over the values."""
        label = f"--set {override}" if override.isprintable() else f"--set {ascii(override)[1:-1]}"
        self.labels.append(label)
        key, equals, text = override.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path):
            mend = "write for example --set train.max_epochs=3"
            self.complain(label, (), explain("", expected="KEY=VALUE", received=repr(override), mend=mend))
            return
        if strange := next((sign for sign in key if not sign.isprintable()), None):
            expected, received = "a key of printable text", f"the character U+{ord(strange):04X}"
            self.complain(label, (), explain("", expected=expected, received=received, mend="remove it"))
            return
        try:
            document = read(text)
        except Unreadable as stop:
            self.complain(label, path, stop.problem.text)
            return
        self.put(path, document.value, label)
        for problem in document.problems:
            self.complain(label, (*path, *problem.path), problem.text)

    def put(self, path: tuple[str, ...], value: JsonValue, label: str) -> None:
        """Put a value at a path, making the mappings on the way."""
        inner = self.data
        for depth, part in enumerate(path[:-1], start=1):
            here = inner.get(part)
            if path[:depth] == ("workers",) and isinstance(here, int):
                here = {"count": here}
            if here is None:
                here = {}
                self.origins[path[:depth]] = label
            if not isinstance(here, dict):
                place = dotted(path[:depth])
                mend = f"set {place} itself, or a key of a section"
                text = explain("", expected="a mapping", received=f"{show(here)} at {place}", mend=mend)
                self.complain(label, path, text)
                return
            inner[part] = here
            inner = here
        inner[path[-1]] = value
        self.origins = {known: origin for known, origin in self.origins.items() if known[: len(path)] != path}
        self.problems = [problem for problem in self.problems if problem[1][: len(path)] != path]
        self.origins[path] = label

    def complain(self, origin: int | str, path: Path, text: str) -> None:
        """Note a problem."""
        self.problems.append((origin, path, text))

    def finish(self, roots: Sequence[str] | None) -> JobSpec:
        """Make the spec, or raise everything that is wrong."""
        spec = None
        self.check_length()
        seen = {path for _, path, _ in self.problems}
        try:
            spec = JobSpec.model_validate(self.data)
        except ValidationError as error:
            found = problems_of(error, self.data)
            self.problems += [(self.origin(path), path, text) for path, text in found if path not in seen]
        self.check_targets(roots)
        if spec is None or self.problems:
            raise SpecError(*(self.word(problem) for problem in sorted(self.problems, key=self.order)))
        return spec

    def check_length(self) -> None:
        """See whether an override lies beside what it should replace: which key gives way, only the user knows."""
        train = self.data.get("train")
        length = {key: train.get(key) for key in ("max_epochs", "max_iters")} if isinstance(train, dict) else {}
        if not length or None in length.values():
            return
        overrides = {key: origin for key in length if isinstance(origin := self.origin(("train", key)), str)}
        if not overrides:
            return
        key, label = max(overrides.items(), key=lambda item: self.labels.index(item[1]))
        other = next(one for one in length if one != key)
        expected, received = "exactly one of max_epochs and max_iters", f"{key} beside {other}: {show(length[other])}"
        mend = f"add --set train.{other}=null" if other not in overrides else "leave one of them out"
        self.complain(label, ("train",), explain("", expected=expected, received=received, mend=mend))

    def check_targets(self, roots: Sequence[str] | None) -> None:
        """Ask whether the named functions exist, where the values have the right form."""
        seen = {path for _, path, _ in self.problems}
        for key in ("program", "handlers"):
            text = self.data.get(key)
            if roots is None or (key,) in seen or not isinstance(text, str):
                continue
            problem = check_target(text, roots)
            if problem is not None:
                self.complain(self.origin((key,)), (key,), problem)

    def origin(self, path: Path) -> int | str:
        """Tell where a value came from: its own place, or that of what encloses it."""
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path, 1)

    def order(self, problem: tuple[int | str, Path, str]) -> tuple[bool, int]:
        """Sort by line; overrides come last, in their own order."""
        origin = problem[0]
        return (False, origin) if isinstance(origin, int) else (True, self.labels.index(origin))

    def word(self, problem: tuple[int | str, Path, str]) -> str:
        """Write a problem with its place; an override that names the path itself does not repeat it."""
        origin, path, text = problem
        if isinstance(origin, int):
            place = f"{self.where}:{origin}"
        else:
            place = origin
            path = () if self.origins.get(path) == origin or origin.startswith(f"--set {dotted(path)}=") else path
        return ": ".join(part for part in (place, dotted(path), text) if part)


def place_of(problem: Problem, where: str) -> str:
    """Write a problem that stopped the reading, with its line and, where known, its column."""
    column = "" if problem.column is None else f":{problem.column}"
    return ": ".join(part for part in (f"{where}:{problem.line}{column}", dotted(problem.path), problem.text) if part)


def top_problem(document: Document, where: str) -> str:
    """Word the problem of a file that holds no mapping."""
    if document.problems:
        return place_of(document.problems[0], where)
    required = [name for name, field in JobSpec.model_fields.items() if field.is_required()]
    mend = f"write at least the keys {', '.join(required)}"
    if not document.lines:
        return explain(where, expected="a mapping of job keys", received="an empty file", mend=mend)
    place = f"{where}:{document.lines[()]}"
    return explain(place, expected="a mapping of job keys", received=show(document.value), mend=mend)
