"""`rankfire list`: the runs of a storage and how each one stands, read from their folders."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from orchestrator.cli.storage import json_option, print_json, shown, storage_option, time_in_words

if TYPE_CHECKING:
    from orchestrator.runs import RunState

__all__ = ["list_runs"]

EPILOG = """\b
Examples:
  rankfire list
  rankfire list --state running --state failed
  rankfire list --storage s3://bucket/runs --json"""
STATES = ["new", "running", "stopping", "lost", "completed", "terminated", "interrupted", "failed", "unreadable"]


@click.command(name="list", epilog=EPILOG)
@storage_option
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="Only runs that stand so.")
@json_option
def list_runs(storage: str, states: tuple[str, ...], as_json: bool) -> None:
    """List all runs, the one that changed last first."""
    from orchestrator.checkpoints.references import storage_named
    from orchestrator.runs import runs_in

    runs = [run for run in runs_in(storage_named(storage)) if not states or run.state in states]
    if as_json:
        print_json([shown(run) for run in runs])
    elif runs:
        show(runs)
    else:
        click.echo(f"no runs in {storage}; start one with rankfire run job.yaml")


def show(runs: Sequence[RunState]) -> None:
    """Print a table; plain columns where nobody looks."""
    rows = [("run", "state", "epoch", "iteration", "changed")]
    rows += [(one.run, one.state, str(one.epoch), str(one.iteration), time_in_words(one.changed)) for one in runs]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    sys.stdout.write("\n".join(lines) + "\n")
