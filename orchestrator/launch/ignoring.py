"""Lines of ignore files as git means them, in a time that grows with the pattern times the path, and no faster.

Called by `package.py`. No line becomes one regular expression: one with many stars would try all their lengths.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Rule", "rules_of"]

ANY = None  # in place of a name: any number of folders
_TOKEN = re.compile(r"\*+|\?|\[[!^]?\]?[^\]]*\]|\\.|.", re.DOTALL)
_NOTHING = "(?!)"  # a pattern that fits nothing: for a character class that is not valid


@dataclass(frozen=True, slots=True)
class Piece:
    """What stands between two stars: so many characters or character classes."""

    pattern: re.Pattern[str]
    length: int


@dataclass(frozen=True, slots=True)
class Name:
    """A pattern of one file's or folder's name: pieces, between which anything may stand."""

    pieces: tuple[Piece, ...]

    def fits(self, name: str) -> bool:
        """Whether a name is of this pattern; a piece is taken where it first fits, so nothing is tried twice."""
        first, *others = self.pieces
        if not others:
            return first.pattern.fullmatch(name) is not None
        *middle, last = others
        at, end = first.length, len(name) - last.length
        if end < at or not first.pattern.match(name) or not last.pattern.fullmatch(name, end):
            return False
        for piece in middle:
            if (found := piece.pattern.search(name, at, end)) is None:
                return False
            at = found.end()
        return True


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of an ignore file; the last one that fits a path decides.

    Args:
        names: from the folder of the ignore file on; `ANY` stands for any number of folders.
        keep: whether what fits is not ignored.
        folders_only: whether only folders fit.
    """

    names: tuple[Name | None, ...]
    keep: bool
    folders_only: bool

    def fits(self, path: Sequence[str]) -> bool:
        """Whether a path, as names from the folder of the ignore file on, is of this pattern."""
        last = len(self.names) - 1
        reached = self._without_folders({0})
        for name in path:
            further = set[int]()
            for at in reached - {last + 1}:
                pattern = self.names[at]
                if pattern is ANY:
                    further.update((at, at + 1) if at == last else (at,))
                elif pattern.fits(name):
                    further.add(at + 1)
            reached = self._without_folders(further)
        return last + 1 in reached

    def _without_folders(self, reached: set[int]) -> set[int]:
        """The same, and past each `ANY`, which may be no folder; only what ends in one wants something there."""
        for at in sorted(reached):
            while at < len(self.names) - 1 and self.names[at] is ANY:
                at += 1
                reached.add(at)
        return reached


def rules_of(text: str) -> Iterator[Rule]:
    """The rules of an ignore file."""
    for line in text.splitlines():
        if (rule := _rule(line)) is not None:
            yield rule


def _rule(line: str) -> Rule | None:
    """Read a line as git does: `!` keeps, a slash at the end means folders, one elsewhere ties it to its folder."""
    text = line.rstrip()
    if not text or text.startswith("#"):
        return None
    keep, text = text.startswith("!"), text.removeprefix("!")
    folders_only, text = text.endswith("/"), text.rstrip("/")
    tied = "/" in text
    if not (text := text.removeprefix("/")):
        return None
    names = tuple(ANY if part == "**" and tied else _name(part) for part in text.split("/"))
    return Rule(names if tied else (ANY, *names), keep, folders_only)


def _name(text: str) -> Name:
    pieces: list[list[str]] = [[]]
    for token in _TOKEN.findall(text):
        if token.startswith("*"):
            pieces.append([])
        else:
            pieces[-1].append(_character(token))
    return Name(tuple(Piece(re.compile("".join(piece), re.DOTALL), len(piece)) for piece in pieces))


def _character(token: str) -> str:
    """A regular expression for one character of a name."""
    if token == "?":
        return "."
    if len(token) < 2 or token.startswith("\\"):
        return re.escape(token[-1])
    negated = token[1] in "!^"
    inside = re.sub(r"([\\\[\]&~|^])", r"\\\1", token[2 if negated else 1 : -1])
    letters = f"[{'^' if negated else ''}{inside}]"
    try:
        re.compile(letters)
    except re.error:  # such as a range from z to a
        return _NOTHING
    return letters
