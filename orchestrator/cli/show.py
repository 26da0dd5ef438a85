"""`rankfire show`: all that a run's folder tells: its job file, what happened when, its checkpoints, its faults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.checkpoints import entry, list_of
from orchestrator.cli.status import in_words
from orchestrator.cli.storage import (
    folder_named,
    json_option,
    print_json,
    shown,
    size_in_words,
    storage_option,
    time_in_words,
)

if TYPE_CHECKING:
    from workers.storage import Storage

__all__ = ["show"]

EPILOG = """\b
Examples:
  rankfire show digits
  rankfire show digits --json | jq .faults"""
PLAIN = ("event", "time", "generation", "epoch", "iteration")  # what every line of a journal has
LEFT_OUT = ("versions", "roots", "program", "node", "token", "run", "stacks")  # of the timeline, for people


@click.command(epilog=EPILOG)
@click.argument("run")
@storage_option
@json_option
def show(run: str, storage: str, as_json: bool) -> None:
    """Show RUN: its job, timeline, checkpoints and faults."""
    from orchestrator.checkpoints.references import readable
    from orchestrator.checkpoints.registry import Registry
    from orchestrator.runs import FAULTS, events_of, look_at

    home = folder_named(run, storage)
    state = look_at(home)
    with readable(home.url):
        spec, events = spec_of(home), list(events_of(home))
        checkpoints = list_of(Registry(home.child("checkpoints")), verify=False)
    faults = [event for event in events if event["event"] in FAULTS]
    if as_json:
        saved = [entry(line) for line in checkpoints]
        told = {"spec": spec, "timeline": events, "checkpoints": saved, "faults": faults}
        print_json({**shown(state), **told})
        return
    click.echo("\n".join(in_words(state)))
    section("job", (spec or "started from Python: there is no job file").splitlines())
    section("timeline", [line_of(event) for event in events])
    section("checkpoints", [saved_in_words(line) for line in checkpoints])
    section("faults", [line_of(event) for event in faults])


def spec_of(home: Storage) -> str | None:
    """The run's job file; None: it was started from Python."""
    try:
        return home.read("spec.yaml").decode(errors="replace")
    except FileNotFoundError:
        return None


def section(title: str, lines: list[str]) -> None:
    """Print one part, indented."""
    from workers.redaction import redact

    click.echo(f"\n{title}")
    for line in lines or ["none"]:
        click.echo(redact(f"  {line}"))


def line_of(event: Mapping[str, Any]) -> str:
    """One line of a journal, for people."""
    rest = {key: value for key, value in event.items() if key not in (*PLAIN, *LEFT_OUT) and value not in (None, "")}
    where = f"epoch {event['epoch']}, iteration {event['iteration']}"
    told = "  ".join(f"{key} {word(value)}" for key, value in rest.items())
    return f"{time_in_words(event['time'])}  {event['event']:<20} {where}  {told}".rstrip()


def word(value: Any) -> str:
    """A value of a journal's line, for people."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {word(item)}" for key, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def saved_in_words(line: Any) -> str:
    """One checkpoint in a line."""
    if line.manifest is None:
        return f"{line.name}  " + ("unfinished" if line.unfinished else "; ".join(line.problems))
    manifest, marks = line.manifest, "".join(f"  {mark}" for mark in line.marks)
    size = size_in_words(manifest.size)
    return f"{line.name}  epoch {manifest.epoch}  {size}  {time_in_words(manifest.time)}{marks}"
