"""The working directory as one archive for a cluster: what is ignored stays here, the same content is the same archive.

`.gitignore`, `.rayignore` and `.rankfireignore` are heeded in every folder. What is never wanted there is left out
without being named: repositories, environments, caches, secrets. No link leads out of the folder.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import SpecError, explain

__all__ = ["MOST", "Package", "pack"]

MOST = 100 << 20  # bytes of an archive; Ray keeps it in the memory of its head
LARGEST = 5  # files that an error names
IGNORES = (".gitignore", ".rayignore", ".rankfireignore")
NEVER = {
    ".git", ".hg", ".svn", ".venv", "venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".tox",
    ".hypothesis", "node_modules", ".ipynb_checkpoints", ".env", ".netrc", ".ssh", ".aws", ".ray",
}  # fmt: skip
BEGAN = (1980, 1, 1, 0, 0, 0)  # the time of every file in an archive: the same content is the same archive


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """An archive.

    Args:
        content: of the zip file.
        digest: its sha256.
        files: paths of what is in it.
        outside: links that were left out because they lead out of the folder.
    """

    content: bytes
    digest: str
    files: tuple[str, ...]
    outside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of an ignore file, compiled; the last one that matches a path decides."""

    pattern: re.Pattern[str]
    keep: bool
    folders_only: bool


def pack(root: Path, added: Mapping[str, bytes]) -> Package:
    """Pack a folder.

    Args:
        root: the folder.
        added: further files, by path; they take the place of the folder's own.

    Raises:
        SpecError: it is too large; names the largest files.
    """
    buffer, sizes, outside = io.BytesIO(), dict[str, int](), list[str]()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for path in _wanted(root, "", [], outside):
            if path not in added:
                sizes[path] = _add(archive, path, (root / path).read_bytes())
                if sum(sizes.values()) > 10 * MOST:
                    raise _too_large(root, sizes)
        for path, content in sorted(added.items()):
            sizes[path] = _add(archive, path, content)
    content = buffer.getvalue()
    if len(content) > MOST:
        raise _too_large(root, sizes)
    digest = hashlib.sha256(content).hexdigest()
    return Package(content=content, digest=digest, files=tuple(sizes), outside=tuple(outside))


def _add(archive: zipfile.ZipFile, path: str, content: bytes) -> int:
    entry = zipfile.ZipInfo(path, BEGAN)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o600 << 16
    archive.writestr(entry, content)
    return len(content)


def _too_large(root: Path, sizes: Mapping[str, int]) -> SpecError:
    largest = sorted(sizes, key=lambda path: -sizes[path])[:LARGEST]
    return SpecError(
        explain(
            f"working directory {root}",
            expected=f"at most {MOST >> 20} MiB to upload",
            received="more; the largest are " + ", ".join(f"{path} ({sizes[path] >> 20} MiB)" for path in largest),
            mend="list what the job does not need in .rankfireignore, and read data from shared storage",
        )
    )


def _wanted(root: Path, folder: str, rules: list[tuple[str, Rule]], outside: list[str]) -> Iterator[str]:
    """Paths of the files that are not ignored, sorted."""
    here = root / folder
    rules = [*rules, *((folder, rule) for name in IGNORES for rule in _rules(here / name))]
    for entry in sorted(os.scandir(here), key=lambda entry: entry.name):
        path = f"{folder}/{entry.name}" if folder else entry.name
        if entry.name in NEVER or entry.name.endswith((".egg-info", ".pyc")):
            continue
        if entry.is_symlink():
            target = Path(entry.path).resolve()
            if not target.is_relative_to(root.resolve()):
                outside.append(path)
            elif target.is_file() and not _ignored(path, folder=False, rules=rules):
                yield path
            continue
        folder_here = entry.is_dir()
        if _ignored(path, folder=folder_here, rules=rules):
            continue
        if folder_here:
            yield from _wanted(root, path, rules, outside)
        elif entry.is_file():  # no sockets, no pipes, which would wait for ever
            yield path


def _rules(file: Path) -> Iterator[Rule]:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        if (rule := _rule(line)) is not None:
            yield rule


def _rule(line: str) -> Rule | None:
    """Compile a line as git does: `!` keeps, a slash at the end means folders, one elsewhere ties it to its folder."""
    text = line.rstrip()
    if not text or text.startswith("#"):
        return None
    keep, text = text.startswith("!"), text.removeprefix("!").removeprefix("\\")
    folders_only, text = text.endswith("/"), text.rstrip("/")
    tied = "/" in text
    text = text.removeprefix("/")
    if not text:
        return None
    words = re.split(r"(\*\*/|/\*\*$)", text)
    compiled = "".join("(?:.*/)?" if w == "**/" else "/.*" if w == "/**" else _word(w) for w in words)
    return Rule(re.compile(compiled if tied else f"(?:.*/)?{compiled}", re.DOTALL), keep, folders_only)


def _word(text: str) -> str:
    """A part of a pattern in which no star crosses a slash."""
    pattern = fnmatch.translate(text).removeprefix("(?s:").removesuffix(")\\Z").removesuffix(")\\z")
    return pattern.replace(".*", "[^/]*").replace("(?>[^/]*?", "(?:[^/]*?")


def _ignored(path: str, *, folder: bool, rules: list[tuple[str, Rule]]) -> bool:
    ignored = False
    for base, rule in rules:
        inner = path.removeprefix(f"{base}/") if base else path
        if (folder or not rule.folders_only) and rule.pattern.fullmatch(inner):
            ignored = not rule.keep
    return ignored
