"""Hostile job files, by seed: what nobody would write, and what somebody would who wants to break in, or to break."""

from __future__ import annotations

import random
from pathlib import Path

__all__ = ["SENTINEL", "hostile"]

SENTINEL = "rankfire-was-here"
WHOLE = """\
run: digits
program: program:build
config: {lr: 0.1, layers: [1, 2, 3]}
train: {max_epochs: 5}
workers: {count: 2, cpus: 1}
checkpoint: {every: 1}
seed: 0
storage: runs
"""
NASTY = [
    "!!python/object/apply:os.system ['touch SENTINEL']",
    "!!python/object/new:subprocess.Popen [[touch, SENTINEL]]",
    "!!python/name:os.system", "!!python/module:os", "!<tag:yaml.org,2002:python/object/apply:builtins.eval> ['1']",
    "!!binary c2VjcmV0", "!!set {a, b}", "!!timestamp 2001-01-01", "!!merge <<", "*nobody", "&a [*a, *a]", "&a {b: *a}",
    "../../etc/passwd", "/etc/passwd", "..", ".", "~", "a/../../b", "a\\0b", '"\\0"', '"\\ud800"', "nul", "-", "CON",
    "$(touch SENTINEL)", "`touch SENTINEL`", "; touch SENTINEL", "{{7*7}}", "${HOME}", "%s%s%s%n", "__import__('os')",
    "os:system", "subprocess:run", "builtins:eval", "importlib:import_module", "a:b:c", ":", "x:__class__.__mro__",
    "1e999", "-1e999", ".nan", ".inf", "0x7fffffffffffffff", "9" * 5000, "1" + "_0" * 50, "0o777", "1:30:00",
    "1e-400", "-0", "99999999999999999999999", "true", "null", "''", '""', "[]", "{}", "[[[]]]", "? a", "- - - -",
    "{a: {a: {a: {a: 1}}}}", "'" + "x" * 5000 + "'", "\u202e\u200b", "\u0000", "\ufeff", "é" * 300, "🔥" * 100, "\t",
    "s3://key:secret@host/b", "file:///etc", "memory://x", "http://169.254.169.254/", "ftp://x", "gs://", "://",
    "<<: {run: other}", "&b 1", "!x y", "|", ">", "@", "`", "%YAML 1.1", "---", "...", "#", "\r", "\x85",
]  # fmt: skip
KEYS = ["run", "program", "config", "train", "workers", "checkpoint", "seed", "storage", "handlers", "cluster", "logs"]


def hostile(seed: int, folder: Path) -> str:
    """The job file of a seed; a file that it could make would be `folder / SENTINEL`."""
    chance = random.Random(seed)
    kinds = [_value, _line, _bomb, _deep, _long, _bytes, _duplicates, _many]
    text = chance.choices(kinds, weights=[40, 20, 6, 6, 4, 12, 6, 6])[0](chance)
    return text.replace("SENTINEL", str(folder / SENTINEL))


def _value(chance: random.Random) -> str:
    """One or more values are nasty."""
    lines = WHOLE.splitlines()
    for _ in range(chance.randint(1, 3)):
        key = chance.choice(KEYS)
        nasty = chance.choice(NASTY)
        inner = chance.choice([nasty, f"{{every: {nasty}}}", f"[{nasty}]", f"{{? {nasty} : {nasty}}}", f"\n  {nasty}"])
        lines = [line for line in lines if not line.startswith(f"{key}:")] + [f"{key}: {inner}"]
    chance.shuffle(lines)
    return "\n".join(lines) + "\n"


def _line(chance: random.Random) -> str:
    """Nasty lines in between."""
    lines = WHOLE.splitlines()
    for _ in range(chance.randint(1, 4)):
        lines.insert(chance.randrange(len(lines) + 1), chance.choice(["", " ", "  "]) + chance.choice(NASTY))
    return "\n".join(lines)


def _bomb(chance: random.Random) -> str:
    """Aliases of aliases of aliases: a line each, a billion values in all."""
    width, height = chance.randint(2, 12), chance.randint(5, 40)
    lines = ["config:", "  a0: &a0 [x, x]"]
    for level in range(1, height):
        lines.append(f"  a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
    return WHOLE.replace("config: {lr: 0.1, layers: [1, 2, 3]}\n", "\n".join(lines) + "\n")


def _deep(chance: random.Random) -> str:
    """Nested deeper than any stack."""
    opening, closing = chance.choice([("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", "")])
    depth = chance.choice([65, 1000, 100_000])
    return WHOLE + "config2: " + opening * depth + "1" + closing * depth + "\n"


def _long(chance: random.Random) -> str:
    """Much too long."""
    return WHOLE + "x: " + chance.choice(["a", " ", "[1],", "#\n", "é"]) * chance.choice([10_000, 400_000]) + "\n"


def _bytes(chance: random.Random) -> str:
    """A good file with a few characters changed, doubled or cut."""
    text = list(WHOLE)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(text))
        text[at] = chance.choice([chr(chance.randrange(0x110)), "", text[at] * 2, "\n", ":", "&", "*", "!", "{", "'"])
    return "".join(text)[: chance.randint(1, len(text))]


def _duplicates(chance: random.Random) -> str:
    """Keys that are given twice, of which the second might be what counts."""
    key = chance.choice(KEYS)
    return WHOLE + f"{key}: {chance.choice(NASTY)}\n{key}: {chance.choice(NASTY)}\n"


def _many(chance: random.Random) -> str:
    """Very many small values."""
    return WHOLE + "extra: [" + "1," * chance.choice([1000, 60_000]) + "]\n"
