"""`rankfire checkpoints`: list the checkpoints of a run, and say whether every byte of them is as it was written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import click

from orchestrator.cli.storage import finite, print_json, size_in_words, storage_option

if TYPE_CHECKING:
    from orchestrator.checkpoints.manifest import Manifest
    from orchestrator.checkpoints.registry import Registry

__all__ = ["checkpoints"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One checkpoint of the list.

    Args:
        name: of its folder.
        url: path or URL of its folder.
        manifest: None if it can't be read.
        marks: of `latest` and `best`, those that name it.
        problems: what is wrong with it, as far as was looked.
        verified: whether every byte was read.
        unfinished: whether it has no manifest, on a storage where a save has none until its end.
    """

    name: str
    url: str
    manifest: Manifest | None = None
    marks: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    verified: bool = False
    unfinished: bool = False


EPILOG = """\b
Examples:
  rankfire checkpoints digits
  rankfire checkpoints digits --verify --json"""


@click.command(epilog=EPILOG)
@click.argument("run")
@storage_option
@click.option("--verify", is_flag=True, help="Read every byte and say what is damaged; if anything is, the code is 3.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, for machines.")
def checkpoints(run: str, storage: str, verify: bool, as_json: bool) -> None:
    """List the checkpoints of RUN, oldest first.

    RUN is a run id, or the path or URL of a run's folder.
    """
    from orchestrator.checkpoints.references import readable, registry_of, storage_named
    from orchestrator.errors import CheckpointError

    registry = registry_of(run, storage_named(storage))
    folder = registry.storage.url.removesuffix("/checkpoints")
    with readable(folder):
        lines = list_of(registry, verify)
    if as_json:
        print_json(document(folder, lines))
    else:
        show(folder, lines)
    damaged = [line.name for line in lines if line.problems]
    if verify and damaged:
        number = sum(not line.unfinished for line in lines)
        raise CheckpointError(f"{len(damaged)} of {number} checkpoints in {folder} damaged: {', '.join(damaged)}")


def list_of(registry: Registry, verify: bool) -> list[Line]:
    """Look at a run's checkpoints, oldest first; leaves out what a run that goes on prunes meanwhile."""
    from orchestrator.checkpoints.references import best_in
    from orchestrator.checkpoints.registry import Committed, order_of
    from orchestrator.checkpoints.verify import problems

    found = registry.found()
    committed = [look for _, look in found if isinstance(look, Committed)]
    best, latest = best_in(committed), committed[-1] if committed else None
    lines = []
    for name, look in found:
        url, manifest = registry.storage.locate(name), None
        wrong: tuple[str, ...] = ()
        if isinstance(look, str):
            wrong = (look,)
        else:
            manifest = look.manifest
            wrong = tuple(problems(look.storage, manifest)) if verify else ()
            if wrong and not registry.holds(name):
                continue
        marks = tuple(word for word, marked in (("latest", latest), ("best", best)) if marked is look)
        verified = verify and manifest is not None
        lines.append(Line(name=name, url=url, manifest=manifest, marks=marks, problems=wrong, verified=verified))
    lines += [Line(name=name, url=registry.storage.locate(name), unfinished=True) for name in registry.unfinished()]
    return sorted(lines, key=lambda line: order_of(line.name))


def document(folder: str, lines: Sequence[Line]) -> dict[str, object]:
    """The list as JSON; every checkpoint has every key, with null for what a damaged manifest does not tell."""
    marked = {mark: line.name for line in lines for mark in line.marks}
    return {
        "run": folder.rpartition("/")[2],
        "url": folder,
        "latest": marked.get("latest"),
        "best": marked.get("best"),
        "checkpoints": [entry(line) for line in lines],
    }


def entry(line: Line) -> dict[str, object]:
    """One checkpoint as JSON; `time` in seconds since 1970, `size` in bytes."""
    manifest = line.manifest
    numbers = ("epoch", "iteration", "world_size", "size", "time")
    return {
        "name": line.name,
        "url": line.url,
        **{name: getattr(manifest, name, None) for name in numbers},
        "metrics": None if manifest is None else finite(manifest.metrics),
        "marks": list(line.marks),
        "verified": line.verified,
        "problems": list(line.problems),
        "unfinished": line.unfinished,
    }


def show(folder: str, lines: Sequence[Line]) -> None:
    """Print the list as a table, and below it what was found when looking closer."""
    from rich.console import Console
    from rich.table import Table

    if not lines:
        click.echo(f"run {folder.rpartition('/')[2]} has no checkpoints yet: {folder}")
        return
    table = Table(title=f"run {folder.rpartition('/')[2]}")
    table.add_column("checkpoint", no_wrap=True)
    for heading in ("epoch", "iteration", "world size", "size"):
        table.add_column(heading, justify="right")
    for heading in ("time", "metrics", ""):
        table.add_column(heading, overflow="fold")
    for line in lines:
        table.add_row(*cells(line))
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 1000  # whoever reads a pipe cuts lines for themselves
    console.print(table)
    for text in remarks(lines):
        click.echo(text)


def cells(line: Line) -> Iterable[str]:
    """One row of the table."""
    words = {"damaged": line.problems, "unfinished or without manifest": line.unfinished}
    last = ", ".join([*line.marks, *(word for word, true in words.items() if true)])
    if (manifest := line.manifest) is None:
        return line.name, "", "", "", "", "", "", last
    metrics = ", ".join(f"{name} {value:.6g}" for name, value in sorted(manifest.metrics.items()))
    numbers = str(manifest.epoch), str(manifest.iteration), str(manifest.world_size), size_in_words(manifest.size)
    time = datetime.fromtimestamp(manifest.time).strftime("%Y-%m-%d %H:%M:%S")
    return line.name, *numbers, time, metrics, last


def remarks(lines: Sequence[Line]) -> Iterable[str]:
    """What is to be said of single checkpoints: that every byte was read and is well, or each problem."""
    for line in lines:
        if line.verified and not line.problems:
            yield f"{line.name}: ok"
        yield from (f"{line.name}: {problem}" for problem in line.problems)
        if line.unfinished:
            yield (
                f"{line.name}: is being saved, or was not saved to its end, or its manifest.json was removed; if "
                "nobody is saving it, the run removes it at its next start"
            )
