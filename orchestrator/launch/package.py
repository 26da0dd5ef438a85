"""The working directory as one archive for a cluster: what is ignored stays here, the same content is the same archive.

`.gitignore`, `.rayignore` and `.rankfireignore` are heeded in every folder. What is never wanted there is left out
without being named: repositories, environments, caches, secrets. No link leads out of the folder, or to these.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import SpecError, explain
from orchestrator.launch.ignoring import Rule, rules_of

__all__ = ["MOST", "Package", "pack"]

MOST = 100 << 20  # bytes of an archive; Ray keeps it in the memory of its head
LARGEST = 5  # files that an error names
IGNORES = (".gitignore", ".rayignore", ".rankfireignore")
NEVER = {
    ".git", ".hg", ".svn", ".venv", "venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".tox",
    ".hypothesis", "node_modules", ".ipynb_checkpoints", ".env", ".netrc", ".ssh", ".aws", ".ray",
    ".npmrc", ".pypirc", ".git-credentials", ".kube", ".docker", ".gnupg", "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519",
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
        unpacked: other links that were left out, and what they lead to, in words.
    """

    content: bytes
    digest: str
    files: tuple[str, ...]
    outside: tuple[str, ...] = ()
    unpacked: tuple[tuple[str, str], ...] = ()


class Found:
    """What is wanted of a folder.

    Args:
        root: the folder.

    Attributes:
        outside: see `Package`.
        unpacked: see `Package`.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._real = os.path.realpath(root)
        self.outside: list[str] = []
        self.unpacked: list[tuple[str, str]] = []

    def files(self) -> Iterator[str]:
        """Paths of the files that are not ignored, sorted; folders may be as deep as the disk has them."""
        levels = [self._folder("", [])]
        while levels:
            if (found := next(levels[-1], None)) is None:
                levels.pop()
            elif isinstance(found, str):
                yield found
            else:
                levels.append(self._folder(*found))

    def _folder(self, folder: str, rules: list[tuple[int, Rule]]) -> Iterator[str | tuple[str, list[tuple[int, Rule]]]]:
        """One folder: its files' paths, and for each folder in it what this function is called with for that."""
        here = self._root / folder
        depth = len(Path(folder).parts)
        rules = [*rules, *((depth, rule) for name in IGNORES for rule in rules_of(_text(here / name)))]
        for entry in sorted(os.scandir(here), key=lambda entry: entry.name):
            path = f"{folder}/{entry.name}" if folder else entry.name
            if _never(entry.name):
                continue
            is_folder = entry.is_dir(follow_symlinks=False)
            if _ignored(path, folder=is_folder, rules=rules):
                continue
            if entry.is_symlink():
                if self._follows(path):
                    yield path
            elif is_folder:
                yield path, rules
            elif entry.is_file():  # no sockets, no pipes, which would wait for ever
                yield path

    def _follows(self, path: str) -> bool:
        """Whether a link leads to a file that may be packed; notes it if it does not."""
        target = os.path.realpath(self._root / path)
        if not Path(target).is_relative_to(self._real):
            self.outside.append(path)
        elif any(_never(name) for name in Path(target).relative_to(self._real).parts):
            self.unpacked.append((path, "what is never packed"))
        elif os.path.isfile(target):
            return True
        else:
            self.unpacked.append((path, "a folder" if os.path.isdir(target) else "nothing that could be read"))
        return False


def pack(root: Path, added: Mapping[str, bytes]) -> Package:
    """Pack a folder.

    Args:
        root: the folder.
        added: further files, by path; they take the place of the folder's own.

    Raises:
        SpecError: it is too large (names the largest files), or a file can't be read, or its name is no text.
    """
    buffer, sizes, found, total = io.BytesIO(), dict[str, int](), Found(root), 0
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for path in _readable(root, found):
            if path not in added:
                sizes[path] = (root / path).stat().st_size
                total += sizes[path]
                if total > 10 * MOST:
                    raise _too_large(root, sizes)
                _add(archive, path, _content(root, path))
        for path, content in sorted(added.items()):
            sizes[path] = _add(archive, path, content)
    content = buffer.getvalue()
    if len(content) > MOST:
        raise _too_large(root, sizes)
    digest = hashlib.sha256(content).hexdigest()
    return Package(
        content=content, digest=digest, files=tuple(sizes), outside=tuple(found.outside), unpacked=tuple(found.unpacked)
    )


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


def _readable(root: Path, found: Found) -> Iterator[str]:
    """The files that are wanted; refuses one whose name can't stand in an archive, and a folder without the right."""
    try:
        for path in found.files():
            if any("\ud800" <= letter <= "\udfff" for letter in path):
                raise _unreadable(root, ascii(path), "a name that is not UTF-8")
            yield path
    except OSError as error:
        raise _unreadable(root, str(error.filename), str(error.strerror)) from error


def _content(root: Path, path: str) -> bytes:
    try:
        return (root / path).read_bytes()
    except OSError as error:
        raise _unreadable(root, path, str(error.strerror)) from error


def _unreadable(root: Path, path: str, problem: str) -> SpecError:
    where, mend = f"working directory {root}", "mend that, remove it, or list it or its folder in .rankfireignore"
    return SpecError(
        explain(where, expected="files that can be read and packed", received=f"{path}: {problem}", mend=mend)
    )


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _never(name: str) -> bool:
    return name in NEVER or name.endswith((".egg-info", ".pyc")) or name.startswith(".env.")


def _ignored(path: str, *, folder: bool, rules: list[tuple[int, Rule]]) -> bool:
    names = path.split("/")
    for depth, rule in reversed(rules):
        if (folder or not rule.folders_only) and rule.fits(names[depth:]):
            return not rule.keep
    return False
